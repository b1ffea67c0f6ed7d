-- Nothing has ever read or written it: how many shards are planned is known to the running load alone.
ALTER TABLE qwen3_ingest.runs DROP COLUMN IF EXISTS shards_planned;
