-- What precedes each chunk when it is embedded: 'headings' or 'none', as in all tables until now.
ALTER TABLE qwen3_ingest.tables ADD COLUMN IF NOT EXISTS context text NOT NULL DEFAULT 'none';
