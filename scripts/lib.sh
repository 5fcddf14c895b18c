# Functions that the other scripts share. Source it; it changes nothing.

say() { printf '\n== %s\n' "$*"; }

die() {
	printf '%s: %s\n' "${0##*/}" "$*" >&2
	exit 1
}

# package_of prints the Debian package that brings a command.
package_of() {
	case $1 in
	sqlite3 | rsync | make | git | strace | fuse-overlayfs | python3) echo "$1" ;;
	npm) echo npm ;;
	node) echo nodejs ;;
	vim | tmux) echo "$1" ;;
	fusermount3) echo fuse3 ;;
	setfattr | getfattr) echo attr ;;
	setfacl | getfacl) echo acl ;;
	setpriv | unshare | script | mount) echo util-linux ;;
	useradd) echo passwd ;;
	ip) echo iproute2 ;;
	newuidmap) echo uidmap ;;
	gcc) echo gcc libc6-dev ;;
	mkfs.ext4) echo e2fsprogs ;;
	mkfs.xfs) echo xfsprogs ;;
	fio) echo fio ;;
	rg) echo ripgrep ;;
	skopeo | umoci | mmdebstrap) echo "$1" ;;
	busybox) echo busybox-static ;;
	qemu-system-x86_64) echo qemu-system-x86 seabios ;;
	*) die "no package is known for the command $1" ;;
	esac
}

# need_packages makes sure that the named commands are there: as root on a
# Debian they are installed, otherwise the user is told what to install.
need_packages() {
	local cmd missing=()
	for cmd in "$@"; do
		command -v "$cmd" >/dev/null || missing+=($(package_of "$cmd"))
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
		say "installing ${missing[*]}"
		export DEBIAN_FRONTEND=noninteractive
		apt-get update -q
		apt-get install -q -y --no-install-recommends "${missing[@]}"
		return
	fi
	die "missing: ${missing[*]} (on Debian: sudo apt-get install ${missing[*]})"
}

# need_go makes sure that there is a Go that this module builds with.
need_go() {
	command -v go >/dev/null ||
		die "no go command: install Go $(sed -n 's/^go //p' go.mod) or newer"
}

# ready_fuse gives ordinary users /dev/fuse as udev does on every installed
# Debian; images made without udev keep the kernel's own mode, 0600.
ready_fuse() {
	if [ "$(id -u)" = 0 ]; then
		[ -e /dev/fuse ] || modprobe fuse 2>/dev/null || true
		[ -e /dev/fuse ] || mknod /dev/fuse c 10 229
		[ "$(stat -c %a /dev/fuse)" = 666 ] || chmod 0666 /dev/fuse
	fi
	[ -r /dev/fuse ] && [ -w /dev/fuse ] ||
		die "/dev/fuse cannot be opened by $(id -un): as root, modprobe fuse && chmod 0666 /dev/fuse"
}

# ready_kernel makes sure that there is a kernel, with its modules, that a
# machine can boot: a container has none of its own.
ready_kernel() {
	local image
	for image in /boot/vmlinuz-*; do
		[ -r "$image" ] && [ -e "/lib/modules/${image#/boot/vmlinuz-}/modules.dep" ] && return
	done
	if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
		say "installing linux-image-cloud-amd64, for machines to boot"
		export DEBIAN_FRONTEND=noninteractive
		apt-get update -q
		apt-get install -q -y --no-install-recommends linux-image-cloud-amd64
		return
	fi
	die "no kernel in /boot can be read that has its modules (on Debian: sudo apt-get install linux-image-cloud-amd64)"
}

# Name of the ordinary user that tests run as when root runs them.
test_user=galleytest

# ready_user makes that user if it is not there.
ready_user() {
	id "$test_user" >/dev/null 2>&1 && return
	say "adding the user $test_user for the tests that need one without root"
	useradd --create-home --shell /bin/bash "$test_user"
}

# ready_ts_client installs the client of integration/agents that others wrote,
# by its lock file, where all lanes find it: in GALLEY_TS_CLIENT.
ready_ts_client() {
	export GALLEY_TS_CLIENT=${GALLEY_TS_CLIENT:-${TMPDIR:-/tmp}/galley-ts-client-$(id -u)}
	local from=integration/agents/testdata/ts
	if ! cmp -s "$from/package-lock.json" "$GALLEY_TS_CLIENT/installed"; then
		rm -rf "$GALLEY_TS_CLIENT"
		mkdir -p "$GALLEY_TS_CLIENT"
		cp "$from"/package*.json "$GALLEY_TS_CLIENT"
		(cd "$GALLEY_TS_CLIENT" && npm ci --ignore-scripts --no-audit --no-fund --prefer-offline >&2)
		chmod -R a+rX "$GALLEY_TS_CLIENT"
		cp "$from/package-lock.json" "$GALLEY_TS_CLIENT/installed"
	fi
	cp "$from/client.mjs" "$GALLEY_TS_CLIENT"
}

# ready_debian makes the image of Debian that tests unpack and boot, where all
# lanes find it: in GALLEY_DEBIAN.
ready_debian() {
	export GALLEY_DEBIAN=${GALLEY_DEBIAN:-${TMPDIR:-/tmp}/galley-debian-$(id -u)/root.tar}
	[ -s "$GALLEY_DEBIAN" ] && return
	say "making an image of Debian, for guests"
	scripts/debian-image.sh "$GALLEY_DEBIAN"
	chmod a+rx "$(dirname "$GALLEY_DEBIAN")"
}

# ready_libkrun fetches the libkrun and libkrunfw that vm/krun is tested with, by
# its lock file, into bin/libkrun, and installs what they link against. There
# are builds for x86-64 alone.
ready_libkrun() {
	[ "$(uname -m)" = x86_64 ] || return 0
	export GALLEY_TEST_LIBKRUN=${GALLEY_TEST_LIBKRUN:-$PWD/bin/libkrun}
	local from=vm/krun/testdata/libkrun
	if ! cmp -s "$from/package-lock.json" "$GALLEY_TEST_LIBKRUN/installed"; then
		rm -rf "$GALLEY_TEST_LIBKRUN"
		mkdir -p "$GALLEY_TEST_LIBKRUN"
		cp "$from"/package*.json "$GALLEY_TEST_LIBKRUN"
		(cd "$GALLEY_TEST_LIBKRUN" && npm ci --ignore-scripts --no-audit --no-fund --prefer-offline >&2)
		mv "$GALLEY_TEST_LIBKRUN"/node_modules/*/*/lib/libkrun*.so.*.*.* "$GALLEY_TEST_LIBKRUN"
		rm -rf "$GALLEY_TEST_LIBKRUN/node_modules"
		chmod -R a+rX "$GALLEY_TEST_LIBKRUN"
		cp "$from/package-lock.json" "$GALLEY_TEST_LIBKRUN/installed"
	fi
	[ ! -e "$(echo /usr/lib/*/libcap-ng.so.0)" ] || return 0
	[ ! -e /lib64/libcap-ng.so.0 ] || return 0
	if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
		say "installing libcap-ng0, for libkrun"
		DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends libcap-ng0
		return
	fi
	die "missing: libcap-ng.so.0 (on Debian: sudo apt-get install libcap-ng0)"
}

# as_user runs a command as that user, with nothing of root's environment but
# what is named here.
as_user() {
	local uid gid home
	uid=$(id -u "$test_user") gid=$(id -g "$test_user")
	home=$(getent passwd "$test_user" | cut -d: -f6)
	env -i HOME="$home" USER="$test_user" LOGNAME="$test_user" SHELL=/bin/bash \
		PATH="$PATH" LANG="${LANG:-C.UTF-8}" TERM="${TERM:-dumb}" ${CI:+CI="$CI"} \
		${GALLEY_TS_CLIENT:+GALLEY_TS_CLIENT="$GALLEY_TS_CLIENT"} \
		${GALLEY_DEBIAN:+GALLEY_DEBIAN="$GALLEY_DEBIAN"} setpriv --reuid="$uid" --regid="$gid" --init-groups "$@"
}
