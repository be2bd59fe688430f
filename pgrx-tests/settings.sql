select format('| `%s` | %s | %s | %s |', name,
  case when coalesce(boot_val, '') = '' then 'empty'
       when vartype = 'integer' and unit is not null and boot_val::bigint >= 0 then
         case unit when 'kB' then replace(pg_size_pretty(boot_val::bigint * 1024), ' bytes', ' B')
                   when 'MB' then replace(pg_size_pretty(boot_val::bigint * 1048576), ' bytes', ' B')
                   when 'ms' then (boot_val::numeric / 1000)::float8 || ' s' else boot_val || ' ' || unit end
       else boot_val end,
  case context when 'superuser' then 'database' when 'sighup' then 'server' else context end,
  concat_ws(' ', short_desc, nullif(extra_desc, '')))
from pg_settings where name like 'tide.%' order by name collate "C"
