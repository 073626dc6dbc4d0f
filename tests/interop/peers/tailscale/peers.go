//go:build peers

// Names the commands that the interop tests run, so that go.mod keeps what they need.
package peers

import (
	_ "tailscale.com/cmd/derper"
	_ "tailscale.com/cmd/derpprobe"
	_ "tailscale.com/cmd/stunc"
	_ "tailscale.com/cmd/tailscale"
	_ "tailscale.com/cmd/tailscaled"
	_ "tailscale.com/tsnet"
)
