package pgserver

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Where a server's data goes when root gives it a folder that the server's user can't get into.
const sharedData = "/var/lib/openqueue"

// resolve is the path as the server itself reports it.
func resolve(dataDir string) (string, error) {
	dir, err := filepath.Abs(dataDir)
	if err != nil {
		return "", err
	}
	real, err := filepath.EvalSymlinks(dir)
	if err == nil || !os.IsNotExist(err) {
		return real, err
	}
	if _, err := os.Lstat(dir); err == nil {
		return "", fmt.Errorf("%s points to a folder that is gone: remove it to begin anew", dir)
	}
	// It is to be made: what there is of the way to it counts.
	parent, err := resolve(filepath.Dir(dir))
	return filepath.Join(parent, filepath.Base(dir)), err
}

// unprivileged is whom a server runs as when we are root, which PostgreSQL refuses to be.
func unprivileged() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err1 == nil && err2 == nil {
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
		}
	}
	return nil, errors.New("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")
}

// owner is unprivileged, but for data that an ordinary user made: root serves it as that user.
func owner(dir string) (*syscall.Credential, error) {
	cred, err := unprivileged()
	if cred == nil || err != nil {
		return nil, err
	}
	info, err := os.Stat(filepath.Join(dir, "PG_VERSION"))
	if os.IsNotExist(err) {
		return cred, nil
	}
	if err != nil {
		return nil, err
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && stat.Uid != 0 {
		cred = &syscall.Credential{Uid: stat.Uid, Gid: stat.Gid}
	}
	return cred, nil
}

// reachable tells early what initdb would say late: whether the server's user can get into a folder.
func reachable(dir string, cred *syscall.Credential) bool {
	if cred == nil {
		return true
	}
	cmd := exec.Command("/bin/sh", "-c", `cd "$1"`, "sh", filepath.Dir(dir))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	cmd.Dir = "/"
	return cmd.Run() == nil
}

// elsewhere puts the data where the server's user can get at it and a link where it was wanted.
func elsewhere(dir string) (string, error) {
	if err := os.MkdirAll(sharedData, 0o755); err != nil {
		return "", err
	}
	if err := os.Chmod(sharedData, 0o755); err != nil {
		return "", err
	}
	real, err := os.MkdirTemp(sharedData, filepath.Base(dir)+"-")
	if err != nil {
		return "", err
	}
	if err := os.Remove(dir); err != nil {
		return "", errors.Join(err, os.Remove(real))
	}
	return real, os.Symlink(real, dir)
}

// dataMajor is the version whose data a directory holds, 0 for one that is to be made.
func dataMajor(dir string) (int, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "PG_VERSION"))
	if err == nil {
		return strconv.Atoi(strings.TrimSpace(string(raw)))
	}
	if !os.IsNotExist(err) {
		return 0, err
	}
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return 0, fmt.Errorf("%s is not empty and holds no PostgreSQL data", dir)
	}
	return 0, nil
}

// readPID reads what a server writes about itself: pid, data directory, start, port.
func readPID(dir string) (*Server, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "postmaster.pid"))
	if os.IsNotExist(err) {
		return nil, ErrNotRunning
	}
	if err != nil {
		return nil, err
	}
	lines := strings.Split(string(raw), "\n")
	if len(lines) < 4 {
		return nil, ErrNotRunning
	}
	pid, err1 := strconv.Atoi(strings.TrimSpace(lines[0]))
	port, err2 := strconv.Atoi(strings.TrimSpace(lines[3]))
	if err1 != nil || err2 != nil || pid <= 0 {
		return nil, ErrNotRunning
	}
	return &Server{dir: dir, port: port, pid: pid}, nil
}

// alive does not count a zombie, which stays where nobody collects orphans, as in many containers.
func alive(pid int) bool {
	if err := syscall.Kill(pid, 0); err != nil {
		return errors.Is(err, syscall.EPERM)
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, state, _ := bytes.Cut(stat[max(0, bytes.LastIndexByte(stat, ')')):], []byte(" "))
	return !bytes.HasPrefix(state, []byte("Z"))
}

// disownDeadPID is for the file of a server that did not live to remove it. PostgreSQL refuses to
// start while the pid in it is anybody's: a zombie's, or after a restart of a container another
// process's. The rest of the file stays: it tells PostgreSQL whether backends of that server live.
func disownDeadPID(dir string) error {
	s, err := readPID(dir)
	if err != nil || syscall.Kill(s.pid, 0) != nil {
		return nil
	}
	if alive(s.pid) {
		cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", s.pid))
		if err != nil || cwd == dir {
			return nil
		}
	}
	file := filepath.Join(dir, "postmaster.pid")
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	_, rest, _ := strings.Cut(string(raw), "\n")
	return os.WriteFile(file, []byte("2147483647\n"+rest), 0o600)
}

// rememberedPort is the port that the data directory used before, while it is free, else any.
func rememberedPort(dir string) (int, error) {
	note := filepath.Join(dir, "openqueue.port")
	if raw, err := os.ReadFile(note); err == nil {
		if port, err := strconv.Atoi(strings.TrimSpace(string(raw))); err == nil && isFree(port) {
			return port, nil
		}
	}
	port, err := freePort()
	if err != nil {
		return 0, err
	}
	return port, os.WriteFile(note, []byte(strconv.Itoa(port)+"\n"), 0o644)
}

// freePort stays below the range that systems take for outgoing connections: one of those could
// have the port while the server is down for a moment.
func freePort() (int, error) {
	for range 100 {
		if port := 20000 + rand.IntN(12000); isFree(port) {
			return port, nil
		}
	}
	return 0, errors.New("no free port from 20000 to 31999 on 127.0.0.1")
}

func isFree(port int) bool {
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return false
	}
	return l.Close() == nil
}
