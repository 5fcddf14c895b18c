#needs: cp truncate setfattr getfattr
mkdir d
truncate -s 64M holes
printf middle | dd of=holes bs=1 seek=20000000 conv=notrunc status=none
printf end | dd of=holes bs=1 seek=67108861 conv=notrunc status=none
head -c 100000 /dev/zero | tr '\0' a >plain
setfattr -n user.note -v hello plain
ln plain d/hard
ln -s ../plain d/soft
chmod 0640 plain
#--- sparse copies
cp --sparse=always holes copy1
cp --sparse=auto holes copy2
cp --reflink=auto holes copy3
cmp holes copy1 && cmp holes copy2 && cmp holes copy3 && echo equal
for f in holes copy1 copy2; do [ $(stat -c %b $f) -lt 2000 ] && echo $f is sparse; done
#--- archive copies
cp -a d e
mkdir tree
cp -a --parents d/soft tree
cp -p plain p2
getfattr -d p2 plain
stat -c '%a %s %n' p2
#--- write into the middle, cut, grow, punch
printf XYZ | dd of=plain bs=1 seek=50000 conv=notrunc status=none
truncate -s 60000 plain
truncate -s 200000 plain
fallocate -p -o 0 -l 8192 plain
fallocate -l 300000 plain
sha256sum plain d/hard
stat -c '%s %h %n' plain d/hard
#--- attributes
setfattr -n user.note -v changed d/hard
setfattr -n user.more -v x holes
setfattr -x user.more holes
getfattr -d plain holes
chmod 0600 holes
touch -d '2019-01-01 00:00:00.5' holes
touch -h -d '2019-01-02' d/soft
stat -c '%a %Y %n' holes d/soft
#--- copy over
cp plain copy1
cat copy2 >copy3
install -m 0751 -D plain inst/dir/prog
dd if=holes of=copy2 bs=1M conv=notrunc,fsync status=none
stat -c '%a %s %n' copy1 copy2 copy3 inst/dir/prog
