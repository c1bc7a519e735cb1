-- What this step mends on PostgreSQL is right here: a name is always looked up by the index that holds it once.
SELECT 1;
