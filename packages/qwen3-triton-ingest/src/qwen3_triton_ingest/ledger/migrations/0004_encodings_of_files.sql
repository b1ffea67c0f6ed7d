-- How many files of a shard had to be read in which encoding, because they are not UTF-8.
ALTER TABLE qwen3_ingest.shards ADD COLUMN IF NOT EXISTS encodings jsonb NOT NULL DEFAULT '{}';
