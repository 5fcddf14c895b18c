#needs: mv find
mkdir -p a/b/c a/x docs empty other/full
i=0
while [ $i -lt 100 ]; do
	echo "$i" >a/b/c/f$i
	i=$((i + 1))
done
echo 1 >docs/one
echo 2 >other/full/two
ln a/b/c/f1 docs/hard
ln -s ../a/b docs/link
#--- directories of the base, as they are and one into another
mv a renamed
mv docs renamed/x/
ls -R renamed | head -20
cat renamed/b/c/f42 renamed/x/docs/hard
cat a/b/c/f1 2>/dev/null || echo 'the old name is gone'
#--- a new one at the old name, and back again
mkdir a
echo fresh >a/only
ls a
mv renamed/b a/
mv a/b/c/f3 a/b/c/moved
find a renamed | LC_ALL=C sort | sha256sum
#--- over an empty directory, not over a full one
mv -T other/full empty
mkdir other/full2
mv -T a other 2>/dev/null || echo 'not over a full directory'
mv -T other/full2 other/full3
rmdir other/full3
#--- exchange by three, chains, and a change below a renamed directory
mv a swap
mv renamed a
mv swap renamed
mv renamed r1
mv r1 r2
mv r2/b/c r2/c
echo changed >r2/c/f5
rm r2/c/f6
find . | LC_ALL=C sort
#--- remove a tree that was renamed, make another in its place
rm -r r2
mkdir -p r2/b
echo new >r2/b/f
find r2
