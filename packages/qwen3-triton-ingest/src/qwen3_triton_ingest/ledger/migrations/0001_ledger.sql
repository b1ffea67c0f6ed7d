-- The ledger: what was loaded into which table, from where, by which run, and what could not be loaded.
-- It is in the database of the tables that it describes, so that a row and its chunks are one transaction.
-- `IF NOT EXISTS`, because the first ledgers have all this and no version.

CREATE SCHEMA IF NOT EXISTS qwen3_ingest;

-- One row per applied migration; the greatest number is the version of the ledger.
CREATE TABLE IF NOT EXISTS qwen3_ingest.migrations (
    version integer PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
);
-- Roles that were granted the other tables before this one existed must be able to check the version.
GRANT SELECT ON qwen3_ingest.migrations TO PUBLIC;

CREATE TABLE IF NOT EXISTS qwen3_ingest.tables (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    layout text NOT NULL,
    -- The one embedding space of the table's vectors, as the gateway names it.
    fingerprint text NOT NULL,
    model text NOT NULL,
    dimensions integer NOT NULL,
    -- Null where the texts were embedded as documents, else the instruction for embedding them as queries.
    instruction text,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (schema_name, table_name)
);

CREATE TABLE IF NOT EXISTS qwen3_ingest.runs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    table_id integer NOT NULL REFERENCES qwen3_ingest.tables ON DELETE CASCADE,
    sources text[] NOT NULL,
    -- Digest of everything that decides what a run does: only an unfinished run with the same one is resumed.
    recipe bytea NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    -- A run that stopped for any reason stays 'running' until it is resumed or replaced by another.
    state text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'complete', 'replaced')),
    rows_before bigint NOT NULL DEFAULT 0,
    shards_planned integer,
    removed bigint NOT NULL DEFAULT 0
);

-- One row per shard that was begun, updated by the transactions that write its chunks.
CREATE TABLE IF NOT EXISTS qwen3_ingest.shards (
    run_id bigint NOT NULL REFERENCES qwen3_ingest.runs ON DELETE CASCADE,
    key bytea NOT NULL,
    source text NOT NULL,
    name text NOT NULL,
    done boolean NOT NULL DEFAULT false,
    documents bigint NOT NULL DEFAULT 0,
    unchanged bigint NOT NULL DEFAULT 0,
    -- Set when the shard is done. What could not be loaded is counted in the dead letters.
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
    -- Of the text and the splitter. Fingerprint and instruction are the table's, the same for all its documents.
    content_hash bytea NOT NULL,
    metadata_hash bytea NOT NULL,
    -- Ids of its rows in the table, in the order of the text.
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
    -- Null where it could not be read; then it is not known which documents have vanished.
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

-- A re-embedding in progress: its target, how far it is, and what changed while it ran.
CREATE TABLE IF NOT EXISTS qwen3_ingest.reembeds (
    table_id integer PRIMARY KEY REFERENCES qwen3_ingest.tables ON DELETE CASCADE,
    fingerprint text NOT NULL,
    model text NOT NULL,
    dimensions integer NOT NULL,
    instruction text,
    -- Key of the last row that has its new vector, in the order of the table's key; null before the first.
    last_key text,
    -- Whether every row that existed at the start has been passed.
    filled boolean NOT NULL DEFAULT false,
    started_at timestamptz NOT NULL DEFAULT now()
);

-- Rows that others wrote while it ran, and rows whose text was refused: they are embedded after the rest.
CREATE TABLE IF NOT EXISTS qwen3_ingest.reembed_changes (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    table_id integer NOT NULL REFERENCES qwen3_ingest.reembeds ON DELETE CASCADE,
    -- Null means all rows: the table was truncated.
    key text
);
CREATE INDEX IF NOT EXISTS reembed_changes_table_id ON qwen3_ingest.reembed_changes (table_id, id);

-- Roles that may write to the table may not write to the ledger, so this runs as its owner.
CREATE OR REPLACE FUNCTION qwen3_ingest.note_reembed_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    noted_table CONSTANT integer := TG_ARGV[0];
    read_key CONSTANT text := format('SELECT ($1).%I::text', TG_ARGV[1]);
    old_key text;
    new_key text;
BEGIN
    IF TG_OP IN ('UPDATE', 'DELETE') THEN
        EXECUTE read_key USING OLD INTO old_key;
    END IF;
    IF TG_OP IN ('UPDATE', 'INSERT') THEN
        EXECUTE read_key USING NEW INTO new_key;
    END IF;
    INSERT INTO qwen3_ingest.reembed_changes (table_id, key)
    SELECT DISTINCT noted_table, k
    FROM unnest(ARRAY[old_key, new_key]) AS k
    WHERE k IS NOT NULL OR TG_OP = 'TRUNCATE';
    RETURN NULL;
END
$$;
