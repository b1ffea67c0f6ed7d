-- A ledger as version 0.1.0 made it before ledgers had a version, verbatim, with what a load of `notes.jsonl`
-- into the table `notes` (32 dimensions, `chunk_tokens=0`) wrote, and a `--reembed` to 64 dimensions that was
-- interrupted before the swap. Made with that program and pg_dump; do not edit.

CREATE EXTENSION vector;

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


CREATE TABLE public.notes (
    id uuid PRIMARY KEY,
    doc_id text NOT NULL,
    seq integer NOT NULL,
    content text NOT NULL,
    metadata jsonb NOT NULL DEFAULT '{}',
    embedding vector(32) NOT NULL
);
CREATE INDEX ON public.notes (doc_id, seq);
CREATE TABLE public.notes__reembed (LIKE public.notes INCLUDING ALL EXCLUDING INDEXES);
ALTER TABLE public.notes__reembed ALTER COLUMN embedding TYPE vector(64);
ALTER TABLE public.notes__reembed ADD CONSTRAINT notes_pkey__reembed PRIMARY KEY (id);
COMMENT ON TABLE public.notes__reembed IS 'Made by qwen3-triton-ingest --reembed, which puts it in the place of another table';

INSERT INTO qwen3_ingest.tables (id, schema_name, table_name, layout, fingerprint, model, dimensions, instruction, created_at) OVERRIDING SYSTEM VALUE VALUES (1, 'public', 'notes', 'own', 'f57470a38172c352', 'qwen3-nano', 32, NULL, '2026-11-29 13:28:34.31915+00');
SELECT pg_catalog.setval('qwen3_ingest.tables_id_seq', 1, true);
INSERT INTO qwen3_ingest.runs (id, table_id, sources, recipe, started_at, finished_at, state, rows_before, shards_planned, removed) OVERRIDING SYSTEM VALUE VALUES (1, 1, '{notes.jsonl}', '\x6b34d0480653e4c43758b84f0ccbd08b', '2026-11-29 13:28:34.436056+00', '2026-11-29 13:28:34.569503+00', 'complete', 0, NULL, 0);
INSERT INTO public.notes (id, doc_id, seq, content, metadata, embedding) VALUES ('3b6842fa-2e28-51a6-8994-a9504418c3f7', 'n0', 0, 'The Moon shines only by reflecting sunlight, and half of its globe is always lit.', '{"shelf": 0}', '[-0.4086863,-0.11585425,-0.15309756,0.11869893,-0.15411574,0.14245553,0.07545949,0.0797075,-0.18201818,0.3310208,0.16061236,0.048629627,0.2839386,0.14951023,-0.16803217,-0.11049768,-0.04799958,0.033154763,-0.26734152,0.035909303,0.0853023,0.01514641,0.27240804,0.113344595,-0.35903734,0.14789176,0.09040553,-0.102043174,-0.036447834,0.022007082,-0.049447656,0.2594224]');
INSERT INTO public.notes (id, doc_id, seq, content, metadata, embedding) VALUES ('8b1bfabc-ddc8-5f0b-9c09-654396397d84', 'n1', 0, 'As it travels around the Earth in about twenty-nine and a half days, we see that lit half from different angles.', '{"shelf": 1}', '[-0.44052228,-0.13170922,-0.21592411,-0.08838302,-0.27898952,0.09662952,-0.05194655,0.22845094,-0.22511953,0.20362367,0.25505918,0.16334036,-0.0063173217,0.06583637,-0.24739912,-0.22931378,-0.25238186,0.0010637013,-0.18448912,-0.07881797,-0.076649405,0.1274414,0.17755856,-0.079461895,-0.032227866,0.21931909,-0.015581301,-0.0647309,-0.18701477,0.0561387,-0.058963466,0.17600074]');
INSERT INTO public.notes (id, doc_id, seq, content, metadata, embedding) VALUES ('a0b73ef1-abd3-5990-9452-ff6edc85b0e1', 'n2', 0, 'At new moon the lit side faces away from us, at full moon it faces us entirely, and between the two it appears as a crescent, a half disc or a swollen gibbous shape.', '{"shelf": 2}', '[-0.47054207,-0.09109981,-0.03364257,0.15553653,-0.16166107,0.029847104,0.11765548,0.32629186,-0.31158873,0.20749676,0.17854027,0.13110135,0.15628882,0.22063172,-0.27140746,-0.15987164,0.101052776,-0.046862006,0.08585354,-0.08026077,0.05901614,-0.01871415,0.07780603,0.06635951,0.047109637,0.11203591,0.13003603,0.20257996,-0.13559958,0.07911524,-0.30219898,0.08306684]');
INSERT INTO public.notes (id, doc_id, seq, content, metadata, embedding) VALUES ('cb02a190-862a-5931-aff5-35c5a080cb0f', 'n3', 0, 'A planet is pulled toward the Sun by gravity, yet it also moves sideways at many kilometers a second.', '{"shelf": 3}', '[-0.5106145,-0.02047316,-0.10963433,-0.002674042,-0.14608812,-0.06757007,0.045483816,0.23548885,-0.3580598,0.17628266,-0.04850171,0.085786365,0.083540894,-0.067331985,-0.039899223,-0.3026304,-0.19626853,0.03482591,-0.16724487,0.18187001,-0.009157734,0.27568093,0.1474039,-0.083782256,-0.036532953,0.09629451,0.32750332,-0.15960924,0.005059774,0.122671,0.06482054,0.038503226]');
INSERT INTO public.notes__reembed (id, doc_id, seq, content, metadata, embedding) VALUES ('3b6842fa-2e28-51a6-8994-a9504418c3f7', 'n0', 0, 'The Moon shines only by reflecting sunlight, and half of its globe is always lit.', '{"shelf": 0}', '[-0.3319802,-0.09410963,-0.12436277,0.0964204,-0.12518984,0.11571814,0.06129654,0.06474725,-0.14785528,0.2688917,0.13046712,0.03950236,0.23064633,0.12144875,-0.13649431,-0.08975843,-0.038990565,0.026931964,-0.21716437,0.029169507,0.069291964,0.012303589,0.22127993,0.09207102,-0.29164985,0.12013404,0.07343737,-0.08289075,-0.029606963,0.017876586,-0.040166855,0.21073157,-0.08454087,0.14965947,0.00024507413,-0.012083273,-0.12386612,-0.040265933,0.014314414,0.02190511,0.026262198,-0.014428938,-0.049064536,0.14498375,0.033688255,-0.04907685,0.011578793,0.0028780994,0.016144661,0.07827232,-0.113991804,0.04019462,0.040893815,-0.06474925,0.070903584,0.2573923,-0.25930008,0.0464124,0.14864297,0.16584964,0.01417189,0.101149164,0.18518816,0.054241158]');
INSERT INTO public.notes__reembed (id, doc_id, seq, content, metadata, embedding) VALUES ('8b1bfabc-ddc8-5f0b-9c09-654396397d84', 'n1', 0, 'As it travels around the Earth in about twenty-nine and a half days, we see that lit half from different angles.', '{"shelf": 1}', '[-0.37086314,-0.11088222,-0.18178034,-0.07440714,-0.2348733,0.08134963,-0.043732315,0.19232632,-0.1895217,0.17142494,0.21472703,0.13751158,-0.005318373,0.05542576,-0.20827825,-0.19305271,-0.21247308,0.0008954998,-0.15531611,-0.066354595,-0.06452894,0.10728928,0.14948148,-0.0668967,-0.02713172,0.18463847,-0.013117452,-0.054495092,-0.15744239,0.04726157,-0.049639657,0.14817,0.11922517,0.118253455,0.13021442,-0.17316529,-0.06061069,0.007415551,-0.001806333,0.0041867066,-0.09286489,0.052075405,-0.020996429,-0.08125232,0.096682176,-0.041146725,0.047360126,-0.040564146,-0.12283978,-0.112088226,-0.17223933,-0.12419324,-0.015920024,-0.011765668,0.019376116,0.100881375,-0.12771623,0.13868389,-0.016433502,0.11479581,0.031357132,-0.01463157,-0.11980229,0.17556784]');
INSERT INTO public.notes__reembed (id, doc_id, seq, content, metadata, embedding) VALUES ('a0b73ef1-abd3-5990-9452-ff6edc85b0e1', 'n2', 0, 'At new moon the lit side faces away from us, at full moon it faces us entirely, and between the two it appears as a crescent, a half disc or a swollen gibbous shape.', '{"shelf": 2}', '[-0.38100752,-0.07376538,-0.027241075,0.1259411,-0.13090026,0.02416781,0.09526804,0.26420516,-0.25229976,0.16801436,0.1445677,0.10615544,0.12655024,0.17864999,-0.21976416,-0.12945132,0.0818245,-0.03794512,0.06951736,-0.064988784,0.04778657,-0.015153229,0.06300113,0.053732652,0.038145635,0.09071776,0.10529282,0.16403313,-0.10979775,0.064061224,-0.24469668,0.06726091,-0.024611136,0.13544852,0.11261059,0.07730678,-0.0461902,-0.10676984,0.14074486,0.09262929,-0.21242894,-0.0057623233,-0.0048555788,-0.09487608,0.034620836,0.0027697636,-0.004327956,0.079566665,0.024608439,-0.12824048,-0.18171076,0.1169303,-0.031649962,0.028922204,0.12195086,0.16210014,-0.24892178,0.04631271,0.019976137,0.020751202,0.08781442,0.14269933,0.05606612,0.014027556]');
INSERT INTO public.notes__reembed (id, doc_id, seq, content, metadata, embedding) VALUES ('cb02a190-862a-5931-aff5-35c5a080cb0f', 'n3', 0, 'A planet is pulled toward the Sun by gravity, yet it also moves sideways at many kilometers a second.', '{"shelf": 3}', '[-0.4132812,-0.016570568,-0.08873585,-0.0021643164,-0.11824082,-0.05468987,0.036813695,0.19059998,-0.2898065,0.14267968,-0.03925632,0.06943377,0.067616336,-0.054497167,-0.032293636,-0.24494302,-0.15885584,0.028187398,-0.13536467,0.14720197,-0.0074120876,0.22313064,0.119305775,-0.06781169,-0.029569047,0.07793886,0.26507467,-0.12918454,0.0040952805,0.099287465,0.052464455,0.031163746,0.029839693,0.16123419,-0.07738803,-0.13554549,-0.0854241,-0.015802218,-0.028343273,-0.115886174,0.16235334,0.08656533,-0.086743325,0.13239089,-0.00934639,-0.11628516,-0.15368067,0.055263583,-0.14210384,-0.16484375,-0.12359536,0.029680919,0.094498955,0.0064506745,0.16397709,0.22281353,-0.0946448,0.016444184,0.04867292,-0.08437114,0.04043992,0.043128595,0.03735155,0.007376549]');
INSERT INTO qwen3_ingest.dead_letters (table_id, source, path, "position", doc_id, stage, reason, attempts, first_at, last_at, run_id) VALUES (1, 'notes.jsonl', 'notes.jsonl', 608, 'bad', 'read', 'the text column ''text'' is of the type int, not a string: name another by `--text-column`', 1, '2026-11-29 13:28:34.45178+00', '2026-11-29 13:28:34.45178+00', 1);
INSERT INTO qwen3_ingest.documents (table_id, doc_id, content_hash, metadata_hash, chunk_ids, source, path, "position", run_id, written_at) VALUES (1, 'n0', '\x312cefec696a784a4de6b137239d9493', '\x5c39da712421625f8576c34e12c5ab9e', '{3b6842fa-2e28-51a6-8994-a9504418c3f7}', 'notes.jsonl', 'notes.jsonl', 1, 1, '2026-11-29 13:28:34.527751+00');
INSERT INTO qwen3_ingest.documents (table_id, doc_id, content_hash, metadata_hash, chunk_ids, source, path, "position", run_id, written_at) VALUES (1, 'n1', '\x9344c255f6171982642ed9cfe25e731d', '\xda5654b8aec24f30828fb29133fdc4f5', '{8b1bfabc-ddc8-5f0b-9c09-654396397d84}', 'notes.jsonl', 'notes.jsonl', 119, 1, '2026-11-29 13:28:34.527751+00');
INSERT INTO qwen3_ingest.documents (table_id, doc_id, content_hash, metadata_hash, chunk_ids, source, path, "position", run_id, written_at) VALUES (1, 'n2', '\x5bd2e95cb986cfaa9d2b6af3073906df', '\xea5cfdcd45d44b7d979232c57ad494d5', '{a0b73ef1-abd3-5990-9452-ff6edc85b0e1}', 'notes.jsonl', 'notes.jsonl', 268, 1, '2026-11-29 13:28:34.527751+00');
INSERT INTO qwen3_ingest.documents (table_id, doc_id, content_hash, metadata_hash, chunk_ids, source, path, "position", run_id, written_at) VALUES (1, 'n3', '\xdf96480ebeb3295ce77488f7e93b9a83', '\x04b590da669caa630a94bf025fe96a8e', '{cb02a190-862a-5931-aff5-35c5a080cb0f}', 'notes.jsonl', 'notes.jsonl', 470, 1, '2026-11-29 13:28:34.527751+00');
INSERT INTO qwen3_ingest.reembeds (table_id, fingerprint, model, dimensions, instruction, last_key, filled, started_at) VALUES (1, 'faf2e495ed03fd24', 'qwen3-nano', 64, NULL, 'cb02a190-862a-5931-aff5-35c5a080cb0f', true, '2026-11-29 13:28:34.684621+00');
INSERT INTO qwen3_ingest.shards (run_id, key, source, name, done, documents, unchanged, duplicates, chunks_written, chunks_kept, chunks_removed, updated_at) VALUES (1, '\x4099b8712f15fe719fd1fc25e1837d9f', 'notes.jsonl', 'notes.jsonl', true, 4, 0, 0, 4, 0, 0, '2026-11-29 13:28:34.550569+00');
SELECT pg_catalog.setval('qwen3_ingest.reembed_changes_id_seq', 1, false);
SELECT pg_catalog.setval('qwen3_ingest.runs_id_seq', 1, true);

CREATE TRIGGER qwen3_ingest_reembed AFTER INSERT OR DELETE OR UPDATE ON public.notes FOR EACH ROW EXECUTE FUNCTION qwen3_ingest.note_reembed_change('1', 'id');
CREATE TRIGGER qwen3_ingest_reembed_truncate AFTER TRUNCATE ON public.notes FOR EACH STATEMENT EXECUTE FUNCTION qwen3_ingest.note_reembed_change('1', 'id');
