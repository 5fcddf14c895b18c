#needs: make gcc
mkdir src
cat >Makefile <<'X'
OBJS = src/main.o src/a.o src/b.o
prog: $(OBJS)
	@echo link
	@gcc -o $@ $(OBJS)
src/%.o: src/%.c src/h.h
	@echo compile $<
	@gcc -c -o $@ $<
clean:
	rm -f prog $(OBJS)
X
echo 'int a(void); int b(void);' >src/h.h
printf '#include "h.h"\n#include <stdio.h>\nint main(void) { printf("%%d\\n", a() + b()); return 0; }\n' >src/main.c
printf '#include "h.h"\nint a(void) { return 40; }\n' >src/a.c
printf '#include "h.h"\nint b(void) { return 2; }\n' >src/b.c
#--- all, then nothing to do
make
./prog
make
#--- one file newer
touch -d '+2 seconds' src/a.c
make
make -q || echo 'out of date: a.c is of the future'
touch -d '2020-05-06' src/a.c
touch prog
make -q && echo 'up to date'
sed -i 's/40/41/' src/a.c
touch -d '+2 seconds' src/a.c
make 2>/dev/null
./prog
touch -d '2020-05-06' src/a.c
#--- clean
make -s clean
ls -R
