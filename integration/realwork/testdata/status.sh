#status: 7
echo base >f
#--- the exit status is the command's own
echo changed >f
cat f
exit 7
