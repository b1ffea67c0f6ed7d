-- A re-embedding under way: what is to become of a table, how far it is, and what changed meanwhile.

CREATE TABLE IF NOT EXISTS qwen3_ingest.reembeds (
    table_id integer PRIMARY KEY REFERENCES qwen3_ingest.tables ON DELETE CASCADE,
    fingerprint text NOT NULL,
    model text NOT NULL,
    dimensions integer NOT NULL,
    instruction text,
    -- Of the last row that has its new vector, in the order of the table's key; null before the first.
    last_key text,
    -- Whether every row that was there in the beginning has been passed.
    filled boolean NOT NULL DEFAULT false,
    started_at timestamptz NOT NULL DEFAULT now()
);

-- Rows that others wrote meanwhile, and rows whose text was refused: they are embedded after the rest.
CREATE TABLE IF NOT EXISTS qwen3_ingest.reembed_changes (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    table_id integer NOT NULL REFERENCES qwen3_ingest.reembeds ON DELETE CASCADE,
    -- Null stands for all rows: the table was truncated.
    key text
);
CREATE INDEX IF NOT EXISTS reembed_changes_table_id ON qwen3_ingest.reembed_changes (table_id, id);

-- Whoever may write to the table may not write to the ledger, so this runs as its owner.
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
