package mcpserver

import (
	"context"
	"crypto/subtle"
	"errors"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

const (
	// Path is where the server answers.
	Path = "/mcp"
	// maxBody bounds a request's body.
	maxBody = maxFrame
	// idleTimeout ends a session of which nothing is heard.
	idleTimeout = time.Hour
)

// Handler serves clients over streamable HTTP. A request needs the token as a
// bearer, names exactly one of hosts in its Host header, and, where it comes
// from a browser's page, that very origin: another page, or a name that was
// bound to this address, gets nowhere. denied, unless nil, is told of what is
// refused, and why.
func Handler(s *mcp.Server, token string, hosts []string, denied func(r *http.Request, why string)) http.Handler {
	inner := mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return s }, &mcp.StreamableHTTPOptions{
		MaxRequestBodyBytes: maxBody, SessionTimeout: idleTimeout,
		// Host and Origin are checked below, and more strictly.
		DisableLocalhostProtection: true,
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch code, why := admit(r, token, hosts); {
		case code != 0:
			if denied != nil {
				denied(r, why)
			}
			if code == http.StatusUnauthorized {
				w.Header().Set("WWW-Authenticate", `Bearer realm="galley"`)
			}
			http.Error(w, why, code)
		case r.URL.Path != Path:
			http.Error(w, "galley answers at "+Path, http.StatusNotFound)
		default:
			inner.ServeHTTP(w, r)
		}
	})
}

// admit says why a request is refused; 0 lets it in.
func admit(r *http.Request, token string, hosts []string) (int, string) {
	known := false
	for _, h := range hosts {
		known = known || r.Host == h
	}
	if !known {
		return http.StatusForbidden, "the Host header is not this server's address"
	}
	if o := r.Header.Values("Origin"); len(o) > 1 || len(o) == 1 && o[0] != "http://"+r.Host {
		return http.StatusForbidden, "the Origin header is not this server's address"
	}
	got, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok || subtle.ConstantTimeCompare([]byte(got), []byte(token)) != 1 {
		return http.StatusUnauthorized, "a request needs the header Authorization: Bearer TOKEN"
	}
	return 0, ""
}

// ServeHTTP serves on a listener until ctx ends.
func ServeHTTP(ctx context.Context, ln net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 64 << 10}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
