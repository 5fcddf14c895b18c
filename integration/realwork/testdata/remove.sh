#needs: rm
mkdir -p big/deep
i=0
while [ $i -lt 400 ]; do
	mkdir -p big/$((i % 20))
	echo "$i" >big/$((i % 20))/f$i
	i=$((i + 1))
done
d=deep
i=0
while [ $i -lt 60 ]; do
	d=$d/dir$i
	i=$((i + 1))
done
mkdir -p big/$d
echo bottom >big/$d/file
mkdir keep
echo keep >keep/k
#--- all of it, some of it back
rm -r big
ls
ls big 2>/dev/null || echo gone
mkdir -p big/3
echo again >big/3/f3
find big
#--- a file where a directory was, and the other way round
rm -r big
echo now a file >big
cat big
rm keep/k
mkdir keep/k
ls -F . keep
#--- open and removed
exec 3<>keep/open
echo written >&3
rm keep/open
echo more >&3
cat <&3
cat /proc/self/fd/3
exec 3>&-
ls keep
