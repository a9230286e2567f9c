package main

import (
	"context"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// A project whose id says so is served badly, for what the test server never does by itself:
//
//	refuse-Publish-UNAVAILABLE-2-anything    the first two calls of Publish fail so; 0 is all calls
//	token-anything                           calls without a bearer token are not known
const (
	refuses = "refuse-"
	asks    = "token-"
)

var (
	refusedMu sync.Mutex
	refused   = map[string]int{}
)

// verdict on a call of a method on a resource.
func verdict(ctx context.Context, method, resource string) error {
	parts := strings.SplitN(resource, "/", 3)
	if len(parts) < 2 || parts[0] != "projects" {
		return nil
	}
	project := parts[1]
	if strings.HasPrefix(project, asks) {
		known := metadata.ValueFromIncomingContext(ctx, "authorization")
		// Three parts: a token that the client signed itself.
		if len(known) != 1 || !strings.HasPrefix(known[0], "Bearer ") || strings.Count(known[0], ".") != 2 {
			return status.Error(codes.Unauthenticated, "Request had invalid authentication credentials.")
		}
	}
	if !strings.HasPrefix(project, refuses) {
		return nil
	}
	words := strings.Split(project, "-")
	if len(words) < 4 || words[1] != method {
		return nil
	}
	var code codes.Code
	if err := code.UnmarshalJSON([]byte(strconv.Quote(words[2]))); err != nil {
		return nil
	}
	times, _ := strconv.Atoi(words[3])
	refusedMu.Lock()
	defer refusedMu.Unlock()
	refused[project]++
	if times > 0 && refused[project] > times {
		return nil
	}
	return status.Errorf(code, "%s is refused on this project.", method)
}

// resource of a request: all have one of these.
func resource(request any) string {
	switch of := request.(type) {
	case interface{ GetSubscription() string }:
		return of.GetSubscription()
	case interface{ GetName() string }:
		return of.GetName()
	case interface{ GetTopic() string }:
		return of.GetTopic()
	case interface{ GetProject() string }:
		return of.GetProject()
	}
	return ""
}

func called(full string) string { return full[strings.LastIndex(full, "/")+1:] }

func refuse(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if err := verdict(ctx, called(info.FullMethod), resource(request)); err != nil {
		return nil, err
	}
	return handle(ctx, request)
}

// refuseStream looks at the first request: it names the subscription.
func refuseStream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	return handle(server, &judged{ServerStream: stream, method: called(info.FullMethod)})
}

type judged struct {
	grpc.ServerStream
	method string
	seen   bool
}

func (j *judged) RecvMsg(request any) error {
	if err := j.ServerStream.RecvMsg(request); err != nil || j.seen {
		return err
	}
	j.seen = true
	return verdict(j.Context(), j.method, resource(request))
}
