-- Runs once, when the database is created.
CREATE EXTENSION IF NOT EXISTS vector;
