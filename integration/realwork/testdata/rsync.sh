#needs: rsync
mkdir -p src/a/b src/c dst/stale
i=0
while [ $i -lt 100 ]; do
	echo "$i" >src/a/b/f$i
	i=$((i + 1))
done
ln src/a/b/f1 src/c/hard
ln -s ../a src/c/soft
chmod 0700 src/a
cp -a src/a dst/a
echo old >dst/a/b/f3
echo gone >dst/stale/x
#--- copy with deletion
rsync -aH --delete --itemize-changes src/ dst/ | LC_ALL=C sort | grep -v '^\.'
#--- a second time does nothing
rsync -aH --delete --itemize-changes src/ dst/
rsync -aHc --delete --dry-run --itemize-changes dst/ src/
#--- in place, and by move
echo longer content >src/a/b/f5
rsync -a --inplace --no-whole-file src/ dst/
cat dst/a/b/f5
rsync -a --remove-source-files src/c/ moved/
find src/c moved | LC_ALL=C sort
