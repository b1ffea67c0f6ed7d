-- Just enough of pg_search 0.20 and later to check the text of queries where it is not installed: names, types and
-- operators are its own, matching is PostgreSQL's `simple` text search, every score is 1. There is no index to it.

CREATE SCHEMA pdb;

CREATE TYPE pdb.query AS (matches_all boolean);

CREATE FUNCTION pdb.all() RETURNS pdb.query IMMUTABLE LANGUAGE sql AS 'SELECT ROW(true)::pdb.query';

CREATE FUNCTION pdb.score(key anyelement) RETURNS real IMMUTABLE LANGUAGE sql AS 'SELECT 1.0::real';

CREATE FUNCTION pdb.snippet(
    field text, start_tag text DEFAULT '<b>', end_tag text DEFAULT '</b>', max_num_chars integer DEFAULT 150
) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT start_tag || left(field, max_num_chars) || end_tag';

CREATE FUNCTION pdb.words(field text) RETURNS text[] IMMUTABLE LANGUAGE sql
AS 'SELECT tsvector_to_array(to_tsvector(''simple'', field))';

CREATE FUNCTION pdb.match_any(field text, query text) RETURNS boolean IMMUTABLE LANGUAGE sql
AS 'SELECT pdb.words(field) && pdb.words(query)';

CREATE FUNCTION pdb.match_all(field text, query text) RETURNS boolean IMMUTABLE LANGUAGE sql
AS 'SELECT pdb.words(field) @> pdb.words(query)';

CREATE FUNCTION pdb.match_term(field text, query text) RETURNS boolean IMMUTABLE LANGUAGE sql
AS 'SELECT query = ANY(pdb.words(field))';

CREATE FUNCTION pdb.match_phrase(field text, query text) RETURNS boolean IMMUTABLE LANGUAGE sql
AS 'SELECT to_tsvector(''simple'', field) @@ phraseto_tsquery(''simple'', query)';

CREATE FUNCTION pdb.match_query(key anyelement, query pdb.query) RETURNS boolean IMMUTABLE LANGUAGE sql
AS 'SELECT (query).matches_all';

CREATE OPERATOR ||| (LEFTARG = text, RIGHTARG = text, FUNCTION = pdb.match_any);
CREATE OPERATOR &&& (LEFTARG = text, RIGHTARG = text, FUNCTION = pdb.match_all);
CREATE OPERATOR === (LEFTARG = text, RIGHTARG = text, FUNCTION = pdb.match_term);
CREATE OPERATOR ### (LEFTARG = text, RIGHTARG = text, FUNCTION = pdb.match_phrase);
CREATE OPERATOR @@@ (LEFTARG = anyelement, RIGHTARG = pdb.query, FUNCTION = pdb.match_query);
