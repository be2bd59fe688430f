-- The secrets that tokens may be signed with, newest first.
select coalesce(
           pg_catalog.json_agg(s.secret order by s.created_at desc, s.id desc),
           '[]'
       )::pg_catalog.text
from tide.secret as s;
