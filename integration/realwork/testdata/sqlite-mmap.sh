#needs: sqlite3
sqlite3 m.db 'create table t(id integer primary key, v blob);
	with recursive n(x) as (select 1 union all select x+1 from n where x<500)
	insert into t select x, zeroblob(3000) from n;'
#--- memory-mapped
sqlite3 m.db 'pragma mmap_size=268435456' 'pragma journal_mode=truncate' \
	"update t set v = hex(id) || zeroblob(2000) where id % 2 = 0" \
	'delete from t where id % 7 = 0' 'pragma integrity_check' 'select sum(length(v)) from t'
#--- vacuum, and a write-ahead log with a mapped file
sqlite3 m.db 'pragma mmap_size=268435456' vacuum 'pragma integrity_check'
sqlite3 m.db 'pragma mmap_size=268435456' 'pragma journal_mode=wal' \
	"insert into t(v) select hex(id) from t limit 100" 'pragma wal_checkpoint(truncate)' 'pragma integrity_check'
sqlite3 m.db 'pragma journal_mode=delete' 'select count(*) from t'
