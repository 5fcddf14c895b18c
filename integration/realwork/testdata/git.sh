#needs: git
#content: (^|/)\.git/(index|worktrees/[^/]*/index|gc\.pid)$
git init -q -b main .
git config pack.threads 1
git config gc.autoDetach false
git config core.untrackedCache false
i=0
while [ $i -lt 60 ]; do
	mkdir -p src/$((i % 7))
	printf 'package %d\nvar x = %d\n' $i $((i * i)) >src/$((i % 7))/f$i.go
	i=$((i + 1))
done
printf '*.o\n' >.gitignore
ln -s src/0 zero
printf '#!/bin/sh\necho hi\n' >run.sh
chmod +x run.sh
git add .
git commit -q -m first
git branch old
for f in src/3/*; do echo '// more' >>$f; done
git rm -q -r src/5
git mv src/2 src/two
git add -A
git commit -q -m second
#--- status, edits, commit
git status --short
echo '// edited' >>src/1/f1.go
rm src/0/f7.go
mkdir new
echo new >new/n.txt
touch new/x.o
git status --short
git diff --stat
git add -A
git commit -q -m third
git log --oneline --stat | cat
#--- checkout between branches, with a merge
git checkout -q old
ls src
git checkout -q -b side
echo side >side.txt
git add side.txt
git commit -q -m side
git checkout -q main
git merge -q --no-edit side
git status --short
git log --oneline --graph | cat
#--- stash, reset, clean
echo dirty >>run.sh
git stash -q
git status --short
git stash pop -q
git diff
git checkout -q run.sh
echo junk >junk.txt
git clean -fdq
git reset -q --hard HEAD~1
git status --short --branch
#--- worktree
git worktree add -q wt side
cat wt/side.txt
(cd wt && echo more >>side.txt && git commit -q -am 'in the worktree')
git worktree list --porcelain | grep -c ^worktree
git worktree remove wt
git branch -a | cat
#--- gc and clone
git gc -q --prune=now
git fsck --strict 2>&1
git count-objects -v | grep -v '^size'
git clone -q . clone
git -C clone log --oneline side2 2>/dev/null || git -C clone log --oneline | cat
git -C clone status --short
ls clone
