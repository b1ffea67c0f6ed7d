-- Statements that give the successor, once it bears the old table's name, what LIKE leaves out.
-- Executed while the old table is still there, which they describe.
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
    SELECT 2, format('GRANT %%s (%%I) ON %%s TO %%s%%s', privilege_type, a.attname, full_name,
        CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END,
        CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
    FROM old JOIN pg_attribute a ON a.attrelid = old.oid AND NOT a.attisdropped,
        aclexplode(a.attacl)
    UNION ALL
    -- %%L gives NULL where there is none, which takes the successor's own comment away.
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
    UNION ALL
    SELECT 3, format('ALTER TABLE %%s ALTER COLUMN %%I SET STATISTICS %%s', full_name, attname,
        attstattarget)
    FROM old JOIN pg_attribute a ON a.attrelid = old.oid AND NOT attisdropped AND attnum > 0
    WHERE attstattarget >= 0
    UNION ALL
    SELECT 3, format('ALTER TABLE %%s REPLICA IDENTITY %%s', full_name,
        CASE relreplident WHEN 'f' THEN 'FULL' ELSE 'NOTHING' END)
    FROM old WHERE relreplident IN ('f', 'n')
    UNION ALL
    -- Their rows were checked in the old table; they are checked again after the swap.
    SELECT 4, format('ALTER TABLE %%s ADD CONSTRAINT %%I %%s%%s', full_name, conname,
        pg_get_constraintdef(k.oid), CASE WHEN convalidated THEN ' NOT VALID' ELSE '' END)
    FROM old JOIN pg_constraint k ON k.conrelid = old.oid AND contype = 'f'
    UNION ALL
    SELECT 5, pg_get_triggerdef(t.oid)
    FROM old JOIN pg_trigger t ON t.tgrelid = old.oid AND NOT t.tgisinternal
    WHERE tgname NOT IN ('qwen3_ingest_reembed', 'qwen3_ingest_reembed_truncate')
    UNION ALL
    SELECT 6, format('ALTER TABLE %%s %%s TRIGGER %%I', full_name,
        CASE tgenabled WHEN 'D' THEN 'DISABLE' WHEN 'R' THEN 'ENABLE REPLICA'
            ELSE 'ENABLE ALWAYS' END, tgname)
    FROM old JOIN pg_trigger t ON t.tgrelid = old.oid AND NOT t.tgisinternal AND tgenabled <> 'O'
    UNION ALL
    SELECT 7, format('CREATE POLICY %%I ON %%s AS %%s FOR %%s TO %%s%%s%%s', polname, full_name,
        CASE WHEN polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,
        CASE polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE'
            WHEN 'd' THEN 'DELETE' ELSE 'ALL' END,
        (SELECT string_agg(CASE r WHEN 0 THEN 'PUBLIC' ELSE r::regrole::text END, ', ')
            FROM unnest(polroles) r),
        ' USING (' || pg_get_expr(polqual, polrelid) || ')',
        ' WITH CHECK (' || pg_get_expr(polwithcheck, polrelid) || ')')
    FROM old JOIN pg_policy p ON p.polrelid = old.oid
    UNION ALL
    SELECT 8, format('ALTER TABLE %%s ENABLE ROW LEVEL SECURITY', full_name)
    FROM old WHERE relrowsecurity
    UNION ALL
    SELECT 8, format('ALTER TABLE %%s FORCE ROW LEVEL SECURITY', full_name)
    FROM old WHERE relforcerowsecurity
) AS steps
ORDER BY step
