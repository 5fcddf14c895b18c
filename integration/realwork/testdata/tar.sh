#needs: tar
mkdir -p d/e/f 'with space' "$(printf 'new\nline')"
i=0
while [ $i -lt 300 ]; do
	echo "$i" >d/e/file$i
	i=$((i + 1))
done
ln d/e/file1 d/hard
ln -s ../d/e d/soft
ln -s nowhere dangling
mkfifo fifo
chmod 0750 d/e
chmod 0400 d/e/file2
head -c 300000 /dev/zero | tr '\0' x >big
truncate -s 1M holes
printf end >>holes
#--- pack what nobody touched
tar --sort=name --numeric-owner -cf - . | sha256sum
#--- unpack beside it
mkdir out
tar -cf - --exclude=./out . | tar -xpf - -C out
(cd out && find . | LC_ALL=C sort | wc -l)
tar -cf - --exclude=./out . | tar -df - -C out && echo same
#--- unpack over what is there, with other content
mkdir x && (cd x && mkdir d && echo other >d/hard && echo top >big && tar -cf ../x.tar .)
tar -xpf x.tar
rm -r x x.tar
cat big d/hard d/e/file1
#--- sparse
tar -cSf s.tar holes
rm holes
tar -xSf s.tar
rm s.tar
stat -c %s holes
[ $(stat -c %b holes) -lt 100 ] && echo sparse
