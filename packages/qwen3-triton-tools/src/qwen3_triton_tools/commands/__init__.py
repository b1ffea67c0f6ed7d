"""The commands, one file each; what they do is in the packages next to this one."""
