//go:build peers

// Names the command that the interop tests run, so that go.mod keeps what it needs.
package peers

import _ "github.com/juanfont/headscale/cmd/headscale"
