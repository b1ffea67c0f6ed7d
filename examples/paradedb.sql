-- Hybrid search in ParadeDB: BM25 by pg_search, cosine distance by pgvector, the two fused by rank.
-- `docs/paradedb.md` explains it, `examples/paradedb_hybrid.py` runs it with texts and vectors; :'question' and
-- :'vector' are variables of psql. Not run against a real pg_search by the tests of this project: over a shim.

-- name: table
CREATE EXTENSION IF NOT EXISTS vector;
CREATE TABLE IF NOT EXISTS passages (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source text NOT NULL UNIQUE,
    subject text NOT NULL,
    title text NOT NULL,
    content text NOT NULL,
    digest text NOT NULL,  -- of the content and of the embedding space: tells what is up to date
    embedding vector(1024) NOT NULL  -- stays `vector`: ParadeDB's index takes no halfvec
);

-- name: hnsw
-- Half the memory of an index over the column itself; a query must repeat the cast.
CREATE INDEX IF NOT EXISTS passages_hnsw
ON passages USING hnsw ((embedding::halfvec(1024)) halfvec_cosine_ops);

-- One index of ParadeDB for a table, made after the load. Which statement depends on the version of pg_search.

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
-- By HNSW, in every version. An arm gives no more rows than `hnsw.ef_search`, which is 40 by default.
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
-- From 0.25 on, where the embedding is part of ParadeDB's index, within one subject. Filters must be in both arms. The
-- vector arm needs one of ParadeDB's operators, `id @@@ pdb.all()` where there is no filter: else it reads every row.
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
-- `|||` any word, `&&&` every word, `###` the phrase, `===` one word as it is in the index.
SELECT source, pdb.score(id), pdb.snippet(content)
FROM passages
WHERE content ||| :'question'
ORDER BY pdb.score(id) DESC, id
LIMIT 5;
