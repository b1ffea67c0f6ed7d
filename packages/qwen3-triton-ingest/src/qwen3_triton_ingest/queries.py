"""The longer SQL statements, each with the module that executes it."""

from __future__ import annotations

from typing import LiteralString

from .layouts import AnyLayoutName

# tables.preparation, by layout: LangChain's as `PGEngine.init_vectorstore_table` of
# langchain-postgres creates it, LlamaIndex's as `PGVectorStore(use_jsonb=True)` of
# llama-index-vector-stores-postgres does.
CREATE_TABLE: dict[AnyLayoutName, LiteralString] = {
    "own": """
CREATE TABLE {table} (
    id uuid PRIMARY KEY,
    doc_id text NOT NULL,
    seq integer NOT NULL,
    content text NOT NULL,
    metadata jsonb NOT NULL DEFAULT '{{}}',
    embedding {vector_schema}.vector({dimensions}) NOT NULL
);
CREATE INDEX ON {table} (doc_id, seq)
""",
    "langchain": """
CREATE TABLE {table} (
    langchain_id uuid PRIMARY KEY,
    content text NOT NULL,
    embedding {vector_schema}.vector({dimensions}) NOT NULL,
    langchain_metadata json
)
""",
    "llamaindex": """
CREATE TABLE {table} (
    id bigserial NOT NULL PRIMARY KEY,
    text varchar NOT NULL,
    metadata_ jsonb,
    node_id varchar,
    embedding {vector_schema}.vector({dimensions})
);
CREATE INDEX {ref_doc_index} ON {table} ((metadata_ ->> 'ref_doc_id'))
""",
}

# tables.preparation: a row if ON CONFLICT can use the column, which takes a valid, plain unique
# index of this column alone over all rows.
UNIQUE_INDEX = """
SELECT 1
FROM pg_index i
JOIN pg_class c ON c.oid = i.indrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0]
WHERE n.nspname = {} AND c.relname = {} AND a.attname = {} AND i.indnkeyatts = 1
    AND i.indisunique AND i.indisvalid AND i.indimmediate
    AND i.indpred IS NULL AND i.indexprs IS NULL
"""

# tables.preparation: whether row-level security applies to this user, and whether the table is
# partitioned and no partition can hold a row.
OBSTACLES_TO_ROWS = """
SELECT row_security_active(c.oid), c.relkind = 'p' AND NOT EXISTS (
    SELECT FROM pg_partition_tree(c.oid) WHERE isleaf)
FROM pg_class c WHERE c.oid = to_regclass(%(table)s)
"""

# tables.catalog
TABLE_COLUMNS = """
SELECT a.attname::text, t.typname::text, n.nspname::text, a.atttypmod,
    NOT a.attnotnull OR a.atthasdef OR a.attidentity <> '', a.attgenerated <> ''
FROM pg_attribute a
JOIN pg_type t ON t.oid = a.atttypid
JOIN pg_namespace n ON n.oid = t.typnamespace
WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
"""

# tables.catalog: sequences that column defaults draw from and this user may not use. Identities
# need no right. CASE fixes the order, for the function fails for anything but a sequence.
UNUSABLE_SEQUENCES = """
SELECT s.relname::text FROM pg_depend d JOIN pg_class s ON s.oid = d.objid
WHERE d.classid = 'pg_class'::regclass AND d.refobjid = %s AND d.deptype = 'a'
    AND CASE s.relkind WHEN 'S' THEN NOT has_sequence_privilege(s.oid, 'USAGE') ELSE false END
"""

# ledger.documents: the run in which the document `d` came to the source that a statement gives it.
# A former name is the same source; then the last run that read the document is remembered.
_OWNED_SINCE = """CASE WHEN d.source = {0}.source THEN d.owned_since
    WHEN d.source = ANY({1}) THEN d.run_id ELSE {2} END"""
OWNED_SINCE = _OWNED_SINCE.format("e", "%s", "%s")

# ledger.documents: whether a record of the same file, or anything in the same folder, had no
# readable id in this run, so that it may be `d`.
IS_DOUBTFUL = """EXISTS (
    SELECT FROM qwen3_ingest.dead_letters l
    WHERE l.run_id = %(run)s AND l.source = d.source AND l.doc_id IS NULL
        AND (l.path IN (d.path, '.') OR starts_with(d.path, rtrim(l.path, '/') || '/')))"""

# ledger.documents
SETTLE_FORMER_NAME = """
WITH unread AS (
    SELECT run_id, count(*) AS documents FROM qwen3_ingest.documents
    WHERE table_id = %(table)s AND source = %(former)s GROUP BY run_id
), read AS (
    SELECT owned_since AS run_id, count(*) AS documents FROM qwen3_ingest.documents
    WHERE table_id = %(table)s AND source = %(source)s GROUP BY owned_since
), settled AS (
    UPDATE qwen3_ingest.documents d SET source = %(source)s, owned_since = d.run_id
    FROM unread LEFT JOIN read USING (run_id)
    WHERE d.table_id = %(table)s AND d.source = %(former)s AND d.run_id = unread.run_id
        AND (%(every)s OR read.documents >= unread.documents)
    RETURNING d.doc_id
)
SELECT (SELECT coalesce(sum(documents), 0)::bigint FROM unread) - (SELECT count(*) FROM settled)
"""

# ledger.documents: rows are locked in the same order everywhere, or workers could deadlock.
MARK_UNCHANGED = f"""
WITH met AS (
    SELECT * FROM unnest(%(ids)s::text[], %(sources)s::text[], %(paths)s::text[],
        %(positions)s::bigint[]) AS m (doc_id, source, path, position)
), locked AS (
    SELECT d.doc_id, d.run_id FROM qwen3_ingest.documents d JOIN met USING (doc_id)
    WHERE d.table_id = %(table)s ORDER BY d.doc_id FOR UPDATE OF d
), marked AS (
    UPDATE qwen3_ingest.documents d
    SET run_id = %(run)s, source = met.source, path = met.path, position = met.position,
        owned_since = {_OWNED_SINCE.format("met", "%(former)s", "%(run)s")}
    FROM met JOIN locked USING (doc_id)
    WHERE d.table_id = %(table)s AND d.doc_id = met.doc_id
)
SELECT count(*) FROM locked WHERE run_id <> %(run)s
"""

# ledger.runs
FAILED_SOURCES = """
SELECT DISTINCT ON (l.source) l.source, count(*) OVER (PARTITION BY l.source), l.path, l.position,
    l.reason
FROM qwen3_ingest.dead_letters l
WHERE l.run_id = %(run)s AND NOT EXISTS (
    SELECT FROM qwen3_ingest.shards s WHERE s.run_id = l.run_id AND s.source = l.source
        AND s.documents + s.unchanged + s.duplicates > 0)
    -- Or another source of this run was the first to read one of its documents.
    AND NOT EXISTS (
        SELECT FROM qwen3_ingest.documents d
        WHERE d.table_id = l.table_id AND d.source = l.source AND d.run_id = l.run_id
            AND NOT EXISTS (
                SELECT FROM qwen3_ingest.dead_letters o
                WHERE o.table_id = d.table_id AND o.run_id = d.run_id AND o.doc_id = d.doc_id))
ORDER BY l.source, l.path, l.position
"""

# index.catalog
VECTOR_INDEXES = """
SELECT c.relname, a.amname, pg_get_indexdef(i.indexrelid, 1, true), o.opcname,
    i.indisvalid AND i.indisready, pg_relation_size(c.oid), coalesce(c.reloptions, '{}'),
    pg_get_indexdef(i.indexrelid)
FROM pg_index i
JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_am a ON a.oid = c.relam
JOIN pg_opclass o ON o.oid = i.indclass[0]
JOIN pg_class t ON t.oid = i.indrelid
JOIN pg_namespace n ON n.oid = t.relnamespace
WHERE n.nspname = %s AND t.relname = %s AND a.amname = ANY(%s)
ORDER BY c.oid
"""

# index.build: the table, or its partitions, with the option `parallel_workers`.
TABLE_WORKERS = """
SELECT n.nspname::text, c.relname::text, (
    SELECT option_value::int FROM pg_options_to_table(c.reloptions)
    WHERE option_name = 'parallel_workers')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND (c.oid = to_regclass(%(table)s)
    OR c.oid IN (SELECT relid FROM pg_partition_tree(to_regclass(%(table)s)) WHERE isleaf))
"""

# index.catalog
INDEX_RIGHTS = """
SELECT pg_has_role(c.relowner, 'USAGE'), has_schema_privilege(n.oid, 'CREATE'),
    c.relowner::regrole::text, quote_ident(current_user), c.relkind = 'p'
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s
"""

# index.catalog
INDEX_PROGRESS = """
SELECT p.pid, p.phase, p.blocks_done, p.blocks_total, p.tuples_done,
    greatest(p.tuples_total, CASE WHEN c.reltuples > 0 THEN c.reltuples::bigint ELSE 0 END)
FROM pg_stat_progress_create_index p
JOIN pg_class c ON c.oid = p.relid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE p.datname = current_database() AND n.nspname = %s AND c.relname = %s
LIMIT 1
"""

# reembed.old_table
PRIMARY_KEY = """
SELECT a.attname, format_type(a.atttypid, a.atttypmod)
FROM pg_index i CROSS JOIN unnest(i.indkey::int2[]) k (attnum)
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
WHERE i.indrelid = %s AND i.indisprimary
"""

# reembed.old_table: the third column is the part of the definition before the index method, quoted
# by the server as it quotes in the definition.
INDEX_DEFINITIONS = """
SELECT c.relname, am.amname,
    format('CREATE %%sINDEX %%I ON %%I.%%I USING ', CASE WHEN i.indisunique THEN 'UNIQUE ' END,
        c.relname, n.nspname, t.relname),
    pg_get_indexdef(i.indexrelid), i.indisunique, i.indisprimary, pg_get_constraintdef(k.oid),
    o.opcname, coalesce(c.reloptions, '{}')
FROM pg_index i
JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_class t ON t.oid = i.indrelid
JOIN pg_namespace n ON n.oid = t.relnamespace
JOIN pg_am am ON am.oid = c.relam
JOIN pg_opclass o ON o.oid = i.indclass[0]
LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid AND k.contype IN ('p', 'u', 'x')
    AND k.conrelid = i.indrelid
WHERE i.indrelid = %s AND i.indisvalid
ORDER BY i.indisprimary DESC, c.oid
"""

# reembed.old_table: everything that a new table in place of the old one would not have. What the
# loader and the frameworks make is left out: defaults, indexes, their constraints, sequences of
# serial columns.
OBSTACLES = """
SELECT pg_describe_object(d.classid, d.objid, d.objsubid)
FROM pg_depend d
WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = %(oid)s AND d.deptype IN ('n', 'a')
    AND d.classid <> 'pg_attrdef'::regclass
    AND NOT (d.classid = 'pg_class'::regclass AND EXISTS (
        SELECT FROM pg_class WHERE oid = d.objid AND relkind IN ('i', 'S')))
    AND NOT (d.classid = 'pg_constraint'::regclass AND EXISTS (
        SELECT FROM pg_constraint WHERE oid = d.objid AND conrelid = %(oid)s AND contype <> 'f'))
    AND NOT (d.classid = 'pg_trigger'::regclass AND EXISTS (
        SELECT FROM pg_trigger WHERE oid = d.objid AND tgname = ANY(%(own_triggers)s)))
UNION SELECT pg_describe_object(d.classid, d.objid, d.objsubid)
FROM pg_depend d JOIN pg_type t ON t.oid = d.refobjid AND t.typrelid = %(oid)s
WHERE d.refclassid = 'pg_type'::regclass AND d.deptype = 'n'
UNION SELECT 'inheritance from ' || inhparent::regclass FROM pg_inherits WHERE inhrelid = %(oid)s
UNION SELECT kind FROM pg_class c CROSS JOIN LATERAL (VALUES
    ('partitions', relkind = 'p'),
    ('row level security', relrowsecurity OR relforcerowsecurity),
    ('a replica identity', relreplident <> 'd'),
    ('being unlogged', relpersistence <> 'p'),
    ('being of a composite type', reloftype <> 0)) k (kind, is_present)
WHERE c.oid = %(oid)s AND is_present
UNION SELECT format('%%s of column %%I', kind, attname)
FROM pg_attribute a CROSS JOIN LATERAL (VALUES
    ('the identity', attidentity <> ''),
    ('grants', attacl IS NOT NULL),
    ('the statistics target', attstattarget >= 0)) k (kind, is_present)
WHERE a.attrelid = %(oid)s AND attnum > 0 AND NOT attisdropped AND is_present
ORDER BY 1
"""

# reembed.successor: statements that give the new table, once it has the old table's name, what
# LIKE leaves out. They are composed while the old table still exists.
LEFT_OUT_BY_LIKE = """
WITH old AS (
    SELECT c.*, format('%%I.%%I', n.nspname, c.relname) AS full_name
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = %(old)s
)
SELECT statement FROM (
    SELECT 1 AS step, format('REVOKE ALL ON %%s FROM %%s', full_name,
        CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END) AS statement
    FROM old, pg_class s CROSS JOIN LATERAL (SELECT DISTINCT grantee FROM aclexplode(s.relacl)) a
    WHERE s.oid = %(new)s
    UNION ALL
    SELECT 2, format('GRANT %%s ON %%s TO %%s%%s', privilege_type, full_name,
        CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END,
        CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
    FROM old, aclexplode(old.relacl)
    UNION ALL
    -- %%L gives NULL where there is no comment, which removes the new table's own.
    SELECT 3, format('COMMENT ON TABLE %%s IS %%L', full_name, obj_description(oid, 'pg_class'))
    FROM old
    UNION ALL
    SELECT 3, format('COMMENT ON INDEX %%I.%%I IS %%L', n.nspname, i.relname,
        obj_description(i.oid, 'pg_class'))
    FROM old JOIN pg_index x ON x.indrelid = old.oid JOIN pg_class i ON i.oid = x.indexrelid
        JOIN pg_namespace n ON n.oid = i.relnamespace
    WHERE obj_description(i.oid, 'pg_class') IS NOT NULL AND x.indisvalid
    UNION ALL
    SELECT 3, format('ALTER TABLE %%s SET (%%s = %%L)', full_name, option_name, option_value)
    FROM old, pg_options_to_table(old.reloptions)
    UNION ALL
    SELECT 3, format('ALTER TABLE %%s SET (toast.%%s = %%L)', full_name, option_name, option_value)
    FROM old JOIN pg_class t ON t.oid = old.reltoastrelid, pg_options_to_table(t.reloptions)
) AS steps
ORDER BY step
"""

# langchain.store and llamaindex.store, through SQLAlchemy: what `StagedTable.types` holds.
COLUMN_TYPES = """
SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), n.nspname::text
FROM pg_attribute a
JOIN pg_type t ON t.oid = a.atttypid
JOIN pg_namespace n ON n.oid = t.typnamespace
JOIN pg_class c ON c.oid = a.attrelid
JOIN pg_namespace s ON s.oid = c.relnamespace
WHERE s.nspname = :schema AND c.relname = :name AND a.attnum > 0 AND NOT a.attisdropped
"""
