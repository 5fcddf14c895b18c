#needs: mkfifo flock ln
#content: ^d/(pipe|mine)$
mkdir d
mkfifo d/pipe
echo a >d/a
echo long >"d/$(printf '%0255d' 0)"
echo odd >"$(printf 'd/\001\033[31m\n\\ \xff')"
ln -s "$(printf '%04000d' 0)" d/long
#--- FIFOs carry data
(echo through >d/pipe) &
cat d/pipe
wait
mkfifo -m 0600 d/mine
stat -c '%a %F' d/mine d/pipe
#--- locks
flock d/a sh -c 'flock -n d/a true || echo held'
(flock 9; flock -n d/a true || echo held; ) 9<d/a
flock -n d/a echo free
#--- names and links
ls d | wc -l
readlink d/long | wc -c
rm "d/$(printf '%0255d' 0)"
mv "$(printf 'd/\001\033[31m\n\\ \xff')" d/even
ln d/even d/even2
ln -s even d/sym
ln -sf a d/sym
ln -f d/a d/even2
cat d/sym d/even d/even2
touch "d/$(printf '%0256d' 0)" 2>/dev/null || echo 'name too long'
#--- umask and times
umask 027
mkdir u
echo x >u/f
umask 0
mkdir -m 1777 u/tmp
echo y >u/g
stat -c '%a %n' u u/f u/g u/tmp
touch -d '1999-12-31 23:59:59.123456789 UTC' u/f
stat -c %y u/f
cp -p u/f u/h
stat -c %y u/h
