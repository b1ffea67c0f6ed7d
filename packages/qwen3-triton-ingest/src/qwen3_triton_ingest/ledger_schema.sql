-- The ledger: what was loaded into which table, from where, by which run, and what could not be.
-- It lies in the database of the tables it speaks of, so that a row and its chunks are one transaction.

CREATE SCHEMA IF NOT EXISTS qwen3_ingest;

CREATE TABLE IF NOT EXISTS qwen3_ingest.tables (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    layout text NOT NULL,
    -- The one embedding space of the table's vectors, as the gateway names it.
    fingerprint text NOT NULL,
    model text NOT NULL,
    dimensions integer NOT NULL,
    -- With which the texts were embedded as queries; null where they were embedded as documents.
    instruction text,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (schema_name, table_name)
);

CREATE TABLE IF NOT EXISTS qwen3_ingest.runs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    table_id integer NOT NULL REFERENCES qwen3_ingest.tables ON DELETE CASCADE,
    sources text[] NOT NULL,
    -- Of all that decides what a run does: only an unfinished run with the same one is resumed.
    recipe bytea NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    -- A run that stopped for any reason stays 'running' until it is resumed or another takes its place.
    state text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'complete', 'replaced')),
    rows_before bigint NOT NULL DEFAULT 0,
    shards_planned integer,
    removed bigint NOT NULL DEFAULT 0
);

-- One row for each shard that was begun, kept true by the transactions that write its chunks.
CREATE TABLE IF NOT EXISTS qwen3_ingest.shards (
    run_id bigint NOT NULL REFERENCES qwen3_ingest.runs ON DELETE CASCADE,
    key bytea NOT NULL,
    source text NOT NULL,
    name text NOT NULL,
    done boolean NOT NULL DEFAULT false,
    documents bigint NOT NULL DEFAULT 0,
    unchanged bigint NOT NULL DEFAULT 0,
    -- Known when the shard is done; what could not be loaded is counted in the dead letters.
    duplicates bigint NOT NULL DEFAULT 0,
    chunks_written bigint NOT NULL DEFAULT 0,
    chunks_kept bigint NOT NULL DEFAULT 0,
    chunks_removed bigint NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, key)
);

CREATE TABLE IF NOT EXISTS qwen3_ingest.documents (
    table_id integer NOT NULL REFERENCES qwen3_ingest.tables ON DELETE CASCADE,
    doc_id text NOT NULL,
    -- Of the text and the splitter. Fingerprint and instruction are the table's, one for all its documents.
    content_hash bytea NOT NULL,
    metadata_hash bytea NOT NULL,
    -- Of its rows in the table, in the order of the text.
    chunk_ids uuid[] NOT NULL,
    source text NOT NULL,
    path text NOT NULL,
    position bigint NOT NULL,
    run_id bigint NOT NULL,
    written_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (table_id, doc_id)
) WITH (fillfactor = 80);
CREATE INDEX IF NOT EXISTS documents_source ON qwen3_ingest.documents (table_id, source, run_id);

CREATE TABLE IF NOT EXISTS qwen3_ingest.dead_letters (
    table_id integer NOT NULL REFERENCES qwen3_ingest.tables ON DELETE CASCADE,
    source text NOT NULL,
    path text NOT NULL,
    position bigint NOT NULL,
    -- Null where it could not be read: with any such record, nobody can tell what has vanished.
    doc_id text,
    stage text NOT NULL CHECK (stage IN ('read', 'split', 'embed', 'write')),
    reason text NOT NULL,
    attempts integer NOT NULL DEFAULT 1,
    first_at timestamptz NOT NULL DEFAULT now(),
    last_at timestamptz NOT NULL DEFAULT now(),
    run_id bigint NOT NULL,
    PRIMARY KEY (table_id, source, path, position)
);
CREATE INDEX IF NOT EXISTS dead_letters_run ON qwen3_ingest.dead_letters (run_id);
