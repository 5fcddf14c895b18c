#needs: sqlite3
sqlite3 base.db 'create table t(id integer primary key, v text); create index i on t(v);
	with recursive n(x) as (select 1 union all select x+1 from n where x<2000)
	insert into t select x, hex(x*7919 % 10007) from n;'
#--- write-ahead log, two connections at once
sqlite3 base.db 'pragma journal_mode=wal' 'pragma synchronous=normal'
i=0
while [ $i -lt 50 ]; do
	sqlite3 base.db "insert into t(v) values('row $i')"
	i=$((i + 1))
done
sqlite3 -cmd '.timeout 20000' base.db "begin; update t set v = v || '!' where id % 3 = 0; delete from t where id % 5 = 0; commit;" &
sqlite3 -cmd '.timeout 20000' base.db 'select count(*) > 0 from t'
wait
sqlite3 base.db 'pragma integrity_check' 'select count(*), sum(length(v)) from t'
#--- readers see what was committed while a writer holds the lock
(printf 'begin immediate;\ninsert into t(v) values(1);\n.shell sqlite3 base.db "select count(*) from t"\nrollback;\n') | sqlite3 base.db
sqlite3 -cmd '.timeout 1' base.db 'begin immediate; insert into t(v) values(2); commit; select count(*) from t'
sqlite3 base.db 'pragma journal_mode=delete' 'pragma integrity_check' .dump | sha256sum
ls
