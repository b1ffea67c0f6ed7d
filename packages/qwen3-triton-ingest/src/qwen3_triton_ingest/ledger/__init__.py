"""What was loaded, stored in PostgreSQL next to the tables that it describes."""
