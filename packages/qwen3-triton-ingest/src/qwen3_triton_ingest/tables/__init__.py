"""Tables in PostgreSQL: found, checked, and created where they are missing."""
