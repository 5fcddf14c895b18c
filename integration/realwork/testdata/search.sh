#needs: find grep sort
i=0
while [ $i -lt 500 ]; do
	mkdir -p t/$((i % 10))/$((i % 7))
	echo "line $i needle$((i % 13))" >t/$((i % 10))/$((i % 7))/f$i.txt
	i=$((i + 1))
done
chmod 0755 t/1/1/f1.txt
#--- find and grep
find t -name '*.txt' -size -2 | LC_ALL=C sort | sha256sum
find t -type f -perm -u+x
find t -newermt 2021-01-01
grep -r needle7 t | LC_ALL=C sort | sha256sum
grep -rL needle t
du -s --apparent-size t/3 >/dev/null
#--- remove what was found, and look again
find t -name 'f*3.txt' -delete
find t -type d -empty -delete
grep -rl needle12 t | xargs rm
find t | LC_ALL=C sort
wc -l t/2/*/* | tail -1
