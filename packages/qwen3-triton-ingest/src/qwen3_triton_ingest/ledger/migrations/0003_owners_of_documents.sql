-- A document belongs to one source. Until now a source was named as it was typed; from here on it has a name that no
-- other source shares, and documents get theirs when a load reads them the next time.
-- The run in which the document came to its source; older than a run means that the source had it before.
ALTER TABLE qwen3_ingest.documents ADD COLUMN IF NOT EXISTS owned_since bigint NOT NULL DEFAULT 0;
