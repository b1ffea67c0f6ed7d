"""What is wrong with this machine or a running stack, and how to mend it."""
