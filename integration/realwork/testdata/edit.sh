#needs: vim sed
mkdir -p docs/deep
i=0
while [ $i -lt 40 ]; do
	printf 'foo %d\nbar\nfoo again\n' $i >docs/deep/p$i.md
	i=$((i + 1))
done
chmod 0755 docs/deep/p1.md
chmod 0600 docs/deep/p2.md
ln -s deep/p3.md docs/link.md
ln docs/deep/p4.md docs/hard.md
#--- sed -i
sed -i 's/foo/baz/' docs/deep/*.md
sed -i --follow-symlinks 's/again/twice/' docs/link.md
sed -i.orig 's/bar/BAR/' docs/deep/p9.md
grep -rc baz docs | LC_ALL=C sort
stat -c '%a %h %n' docs/deep/p1.md docs/deep/p2.md docs/hard.md docs/deep/p4.md
#--- an editor that writes in place
vim -es -u NONE -i NONE -c 'set nobackup nowritebackup noswapfile' -c '%s/BAR/barred/' -c wq docs/deep/p9.md
cat docs/deep/p9.md
#--- an editor that saves by rename
vim -es -u NONE -i NONE -c 'set backup writebackup backupcopy=no' -c '%s/baz/qux/' -c wq docs/deep/p1.md
vim -es -u NONE -i NONE -c 'set nobackup writebackup backupcopy=no' -c 'normal ggdd' -c wq docs/deep/p2.md
vim -es -u NONE -i NONE -c 'set swapfile directory=.' -c 'normal Goadded' -c wq docs/link.md
ls -A docs docs/deep | LC_ALL=C sort
stat -c '%a %n' docs/deep/p1.md docs/deep/p2.md
cat docs/deep/p1.md docs/deep/p2.md docs/deep/p3.md
#--- write a new file, rename it over the old one, as most editors do
for n in 10 11 12; do
	sed 's/again/atomically/' docs/deep/p$n.md >docs/deep/.p$n.tmp
	sync docs/deep/.p$n.tmp
	mv docs/deep/.p$n.tmp docs/deep/p$n.md
done
grep -l atomically -r docs | LC_ALL=C sort
