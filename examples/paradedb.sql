-- Hybrid search in ParadeDB: BM25 from pg_search and cosine distance from pgvector, fused by rank.
-- `docs/paradedb.md` explains it, and `examples/paradedb_hybrid.py` searches with texts and vectors. :'question' and
-- :'vector' are psql variables. The project's tests run it over a shim, not against a real pg_search.

-- name: table
CREATE EXTENSION IF NOT EXISTS vector;
CREATE TABLE IF NOT EXISTS passages (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source text NOT NULL UNIQUE,
    subject text NOT NULL,
    title text NOT NULL,
    content text NOT NULL,
    digest text NOT NULL,  -- of the content and the embedding space: shows what is up to date
    embedding vector(1024) NOT NULL  -- `vector`, because ParadeDB's index does not accept halfvec
);

-- name: hnsw
-- A third of the size of an index over the column itself; queries must repeat the cast.
CREATE INDEX IF NOT EXISTS passages_hnsw
ON passages USING hnsw ((embedding::halfvec(1024)) halfvec_cosine_ops);

-- A table has one ParadeDB index. Create it after the load, with the statement for your version of pg_search.

-- name: index_from_0_20
CREATE INDEX passages_search ON passages
USING bm25 (id, title, content, subject) WITH (key_field = 'id');

-- name: index_from_0_25
CREATE INDEX passages_search ON passages
USING paradedb (id, title, content, subject) WITH (key_field = 'id');

-- name: index_from_0_26
CREATE INDEX passages_search ON passages
USING paradedb (id, title, content, subject, embedding vector_cosine_ops);

-- name: hybrid
-- With HNSW, in every version. The vector arm returns at most `hnsw.ef_search` rows, by default 40.
SET hnsw.ef_search = 100;
WITH text_arm AS (
    SELECT id, rank() OVER (ORDER BY pdb.score(id) DESC, id) AS place
    FROM passages
    WHERE content ||| :'question'
    ORDER BY pdb.score(id) DESC, id
    LIMIT 100
), vector_arm AS (
    SELECT id, rank() OVER (ORDER BY embedding::halfvec(1024) <=> :'vector') AS place
    FROM passages
    ORDER BY embedding::halfvec(1024) <=> :'vector'
    LIMIT 100
), fused AS (
    SELECT id, sum(share) AS score
    FROM (
        SELECT id, 1.0 / (60 + place) AS share FROM text_arm
        UNION ALL
        SELECT id, 1.0 / (60 + place) AS share FROM vector_arm
    ) AS arms
    GROUP BY id
)
SELECT source, title, round(score, 4) AS score
FROM fused JOIN passages USING (id)
ORDER BY fused.score DESC, id
LIMIT 5;

-- name: hybrid_native
-- From 0.25, with the embedding in ParadeDB's index, within one subject. Filters must be in both arms. The vector arm
-- needs one of ParadeDB's operators (`id @@@ pdb.all()` without a filter), otherwise it reads every row.
WITH text_arm AS (
    SELECT id, rank() OVER (ORDER BY pdb.score(id) DESC, id) AS place
    FROM passages
    WHERE content ||| :'question' AND subject === :'subject'
    ORDER BY pdb.score(id) DESC, id
    LIMIT 100
), vector_arm AS (
    SELECT id, rank() OVER (ORDER BY embedding <=> :'vector') AS place
    FROM passages
    WHERE subject === :'subject'
    ORDER BY embedding <=> :'vector'
    LIMIT 100
), fused AS (
    SELECT id, sum(share) AS score
    FROM (
        SELECT id, 1.0 / (60 + place) AS share FROM text_arm
        UNION ALL
        SELECT id, 1.0 / (60 + place) AS share FROM vector_arm
    ) AS arms
    GROUP BY id
)
SELECT source, title, round(score, 4) AS score
FROM fused JOIN passages USING (id)
ORDER BY fused.score DESC, id
LIMIT 5;

-- name: snippets
-- `|||` any word, `&&&` every word, `###` the phrase, `===` one word exactly as indexed.
SELECT source, pdb.score(id), pdb.snippet(content)
FROM passages
WHERE content ||| :'question'
ORDER BY pdb.score(id) DESC, id
LIMIT 5;
