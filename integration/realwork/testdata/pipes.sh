#needs: sort tee patch
seq 1 1000 >numbers
printf 'one\ntwo\nthree\n' >text
#--- append, read and write at once, sort onto itself
seq 1001 1100 >>numbers
sort -rn -o numbers numbers
head -1 numbers
tee -a text <numbers | tail -1
wc -l text numbers
#--- several writers append
: >log
for w in 1 2 3 4; do
	(i=0; while [ $i -lt 100 ]; do echo "$w $i" >>log; i=$((i + 1)); done) &
done
wait
sort -o log log
wc -l log
uniq log | wc -l
#--- patch
cat >p.diff <<X
--- a/text
+++ b/text
@@ -1,3 +1,3 @@
 one
-two
+zwei
 three
X
patch -s -p1 <p.diff
rm p.diff
head -3 text
#--- a program run from the tree, and one that replaces itself
printf '#!/bin/sh\necho v1\n' >prog
chmod +x prog
./prog
printf '#!/bin/sh\necho v2\n' >prog.new
chmod +x prog.new
mv prog.new prog
./prog
cp /bin/true mytrue
./mytrue && echo ran
