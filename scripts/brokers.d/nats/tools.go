//go:build tools

package main

// The server itself, so that go.mod and go.sum pin it.
import _ "github.com/nats-io/nats-server/v2"
