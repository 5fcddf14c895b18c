//go:build cgo

package krun

// Each function of libkrun is called through a pointer, with its type as
// include/libkrun.h of libkrun 1.17 has it. Nothing is linked.

/*
#cgo LDFLAGS: -ldl
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <link.h>

static void *load(const char *path, const char **problem) {
	void *lib = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
	if (lib == NULL)
		*problem = dlerror();
	return lib;
}

static const char *path_of(void *lib) {
	struct link_map *map;
	if (dlinfo(lib, RTLD_DI_LINKMAP, &map) != 0)
		return "";
	return map->l_name;
}

typedef const char *const *strings;

static int32_t call_init_log(void *f, int fd, uint32_t level, uint32_t style, uint32_t options) {
	return ((int32_t (*)(int, uint32_t, uint32_t, uint32_t))f)(fd, level, style, options);
}
static int32_t call(void *f) {
	return ((int32_t (*)(void))f)();
}
static int32_t call_ctx(void *f, uint32_t ctx) {
	return ((int32_t (*)(uint32_t))f)(ctx);
}
static int32_t call_vm_config(void *f, uint32_t ctx, uint8_t cpus, uint32_t mib) {
	return ((int32_t (*)(uint32_t, uint8_t, uint32_t))f)(ctx, cpus, mib);
}
static int32_t call_string(void *f, uint32_t ctx, const char *s) {
	return ((int32_t (*)(uint32_t, const char *))f)(ctx, s);
}
static int32_t call_two_strings(void *f, uint32_t ctx, const char *a, const char *b) {
	return ((int32_t (*)(uint32_t, const char *, const char *))f)(ctx, a, b);
}
static int32_t call_virtiofs3(void *f, uint32_t ctx, const char *tag, const char *path, uint64_t shm, bool ro) {
	return ((int32_t (*)(uint32_t, const char *, const char *, uint64_t, bool))f)(ctx, tag, path, shm, ro);
}
static int32_t call_net(void *f, uint32_t ctx, int fd, uint8_t *mac) {
	return ((int32_t (*)(uint32_t, const char *, int, uint8_t *, uint32_t, uint32_t))f)(ctx, NULL, fd, mac, 0, 0);
}
static int32_t call_number(void *f, uint32_t ctx, uint32_t n) {
	return ((int32_t (*)(uint32_t, uint32_t))f)(ctx, n);
}
static int32_t call_vsock_port2(void *f, uint32_t ctx, uint32_t port, const char *path, bool listen) {
	return ((int32_t (*)(uint32_t, uint32_t, const char *, bool))f)(ctx, port, path, listen);
}
static int32_t call_strings(void *f, uint32_t ctx, strings list) {
	return ((int32_t (*)(uint32_t, strings))f)(ctx, list);
}
static int32_t call_exec(void *f, uint32_t ctx, const char *path, strings argv, strings envp) {
	return ((int32_t (*)(uint32_t, const char *, strings, strings))f)(ctx, path, argv, envp);
}
static int32_t call_kernel(void *f, uint32_t ctx, const char *path, uint32_t format, const char *initrd, const char *cmdline) {
	return ((int32_t (*)(uint32_t, const char *, uint32_t, const char *, const char *))f)(ctx, path, format, initrd, cmdline);
}
static int32_t call_has_feature(void *f, uint64_t feature) {
	return ((int32_t (*)(uint64_t))f)(feature);
}
*/
import "C"

import (
	"fmt"
	"path/filepath"
	"unsafe"
)

// Library is a libkrun that was loaded. It is never unloaded.
type Library struct {
	path      string
	functions map[string]unsafe.Pointer
}

// Open loads the library at path, or the one that the dynamic linker finds
// under that name.
func Open(path string) (*Library, error) {
	handle, err := load(path)
	if err != nil {
		return nil, err
	}
	l := &Library{path: C.GoString(C.path_of(handle)), functions: map[string]unsafe.Pointer{}}
	if real, err := filepath.EvalSymlinks(l.path); err == nil {
		l.path = real
	}
	for _, list := range [][]string{required, optional} {
		for _, name := range list {
			c := C.CString(name)
			if f := C.dlsym(handle, c); f != nil {
				l.functions[name] = f
			}
			C.free(unsafe.Pointer(c))
		}
	}
	return l, nil
}

// Preload loads the library at path for those that are loaded after it and
// know it by its name alone, as libkrun does libkrunfw.
func Preload(path string) error {
	_, err := load(path)
	return err
}

func load(path string) (unsafe.Pointer, error) {
	c := C.CString(path)
	defer C.free(unsafe.Pointer(c))
	var problem *C.char
	handle := C.load(c, &problem)
	if handle == nil {
		return nil, fmt.Errorf("load %s: %s", path, C.GoString(problem))
	}
	return handle, nil
}

// Features says what the library can do.
func (l *Library) Features() Features {
	f := features(l.path, l.has, l.hasFeature)
	if n := l.maxVCPUs(); n > 0 {
		f.MaxCPUs = n
	}
	return f
}

func (l *Library) has(name string) bool { return l.functions[name] != nil }

// check turns what a function returned into an error.
func check(name string, rc C.int32_t) error {
	if rc < 0 {
		return &callError{Function: name, Errno: -int(rc)}
	}
	return nil
}

// fn is the function name; calling one that the library lacks is an error of
// the caller, which must have looked at the features.
func (l *Library) fn(name string) (unsafe.Pointer, error) {
	if f := l.functions[name]; f != nil {
		return f, nil
	}
	return nil, &callError{Function: name, Errno: enosys}
}

func (l *Library) initLog(fd int, level uint32) error {
	const never, noEnv = 2, 1 // KRUN_LOG_STYLE_NEVER, KRUN_LOG_OPTION_NO_ENV
	f, err := l.fn(fnInitLog)
	if err != nil {
		return err
	}
	return check(fnInitLog, C.call_init_log(f, C.int(fd), C.uint32_t(level), never, noEnv))
}

func (l *Library) createCtx() (uint32, error) {
	f, err := l.fn(fnCreateCtx)
	if err != nil {
		return 0, err
	}
	rc := C.call(f)
	return uint32(rc), check(fnCreateCtx, rc)
}

func (l *Library) freeCtx(ctx uint32) error { return l.ctx(fnFreeCtx, ctx) }

func (l *Library) ctx(name string, ctx uint32) error {
	f, err := l.fn(name)
	if err != nil {
		return err
	}
	return check(name, C.call_ctx(f, C.uint32_t(ctx)))
}

func (l *Library) setVMConfig(ctx uint32, cpus uint8, mib uint32) error {
	f, err := l.fn(fnSetVMConfig)
	if err != nil {
		return err
	}
	return check(fnSetVMConfig, C.call_vm_config(f, C.uint32_t(ctx), C.uint8_t(cpus), C.uint32_t(mib)))
}

// text calls a function that takes one string.
func (l *Library) text(name string, ctx uint32, s string) error {
	f, err := l.fn(name)
	if err != nil {
		return err
	}
	c := C.CString(s)
	defer C.free(unsafe.Pointer(c))
	return check(name, C.call_string(f, C.uint32_t(ctx), c))
}

func (l *Library) setRoot(ctx uint32, dir string) error    { return l.text(fnSetRoot, ctx, dir) }
func (l *Library) setWorkdir(ctx uint32, dir string) error { return l.text(fnSetWorkdir, ctx, dir) }
func (l *Library) setConsoleOutput(ctx uint32, path string) error {
	return l.text(fnSetConsoleOutput, ctx, path)
}

func (l *Library) addVirtiofs(ctx uint32, tag, path string) error {
	f, err := l.fn(fnAddVirtiofs)
	if err != nil {
		return err
	}
	a, b := C.CString(tag), C.CString(path)
	defer C.free(unsafe.Pointer(a))
	defer C.free(unsafe.Pointer(b))
	return check(fnAddVirtiofs, C.call_two_strings(f, C.uint32_t(ctx), a, b))
}

func (l *Library) addReadOnlyVirtiofs(ctx uint32, tag, path string) error {
	f, err := l.fn(fnAddVirtiofs3)
	if err != nil {
		return err
	}
	a, b := C.CString(tag), C.CString(path)
	defer C.free(unsafe.Pointer(a))
	defer C.free(unsafe.Pointer(b))
	return check(fnAddVirtiofs3, C.call_virtiofs3(f, C.uint32_t(ctx), a, b, 0, true))
}

// addNetUnixstream adds a network device with no offloads: the frames are to
// arrive whole and checked.
func (l *Library) addNetUnixstream(ctx uint32, fd int, mac [6]byte) error {
	f, err := l.fn(fnAddNetUnixstream)
	if err != nil {
		return err
	}
	m := (*C.uint8_t)(C.CBytes(mac[:]))
	defer C.free(unsafe.Pointer(m))
	return check(fnAddNetUnixstream, C.call_net(f, C.uint32_t(ctx), C.int(fd), m))
}

func (l *Library) disableImplicitVsock(ctx uint32) error { return l.ctx(fnDisableImplicitVsock, ctx) }

func (l *Library) addVsock(ctx uint32, tsi uint32) error {
	f, err := l.fn(fnAddVsock)
	if err != nil {
		return err
	}
	return check(fnAddVsock, C.call_number(f, C.uint32_t(ctx), C.uint32_t(tsi)))
}

// addVsockPort connects whoever in the guest connects to port of the host to
// the socket at path.
func (l *Library) addVsockPort(ctx uint32, port uint32, path string) error {
	f, err := l.fn(fnAddVsockPort2)
	if err != nil {
		return err
	}
	c := C.CString(path)
	defer C.free(unsafe.Pointer(c))
	return check(fnAddVsockPort2, C.call_vsock_port2(f, C.uint32_t(ctx), C.uint32_t(port), c, false))
}

func (l *Library) setPortMap(ctx uint32, ports []string) error {
	f, err := l.fn(fnSetPortMap)
	if err != nil {
		return err
	}
	list, free := stringList(ports)
	defer free()
	return check(fnSetPortMap, C.call_strings(f, C.uint32_t(ctx), list))
}

func (l *Library) setExec(ctx uint32, path string, args, env []string) error {
	f, err := l.fn(fnSetExec)
	if err != nil {
		return err
	}
	c := C.CString(path)
	defer C.free(unsafe.Pointer(c))
	argv, freeArgs := stringList(args)
	defer freeArgs()
	envp, freeEnv := stringList(env)
	defer freeEnv()
	return check(fnSetExec, C.call_exec(f, C.uint32_t(ctx), c, argv, envp))
}

func (l *Library) setKernel(ctx uint32, path string, format uint32, initrd, cmdline string) error {
	f, err := l.fn(fnSetKernel)
	if err != nil {
		return err
	}
	p, i, c := C.CString(path), C.CString(initrd), C.CString(cmdline)
	defer C.free(unsafe.Pointer(p))
	defer C.free(unsafe.Pointer(i))
	defer C.free(unsafe.Pointer(c))
	initrdOrNone := i
	if initrd == "" {
		initrdOrNone = nil
	}
	return check(fnSetKernel, C.call_kernel(f, C.uint32_t(ctx), p, C.uint32_t(format), initrdOrNone, c))
}

func (l *Library) hasFeature(feature uint64) int {
	f, err := l.fn(fnHasFeature)
	if err != nil {
		return -1
	}
	return int(C.call_has_feature(f, C.uint64_t(feature)))
}

func (l *Library) maxVCPUs() int {
	f, err := l.fn(fnGetMaxVCPUs)
	if err != nil {
		return 0
	}
	return int(C.call(f))
}

// startEnter starts the machine. It returns only if that fails; otherwise the
// process ends with the machine.
func (l *Library) startEnter(ctx uint32) error {
	return l.ctx(fnStartEnter, ctx)
}

// stringList makes a list that ends with NULL.
func stringList(list []string) (C.strings, func()) {
	n := len(list)
	array := (*[1 << 20]*C.char)(C.calloc(C.size_t(n+1), C.size_t(unsafe.Sizeof((*C.char)(nil)))))
	for i, s := range list {
		array[i] = C.CString(s)
	}
	return C.strings(unsafe.Pointer(array)), func() {
		for i := range n {
			C.free(unsafe.Pointer(array[i]))
		}
		C.free(unsafe.Pointer(array))
	}
}
