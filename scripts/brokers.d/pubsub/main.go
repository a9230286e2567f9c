// A server that speaks the protocol of Google Pub/Sub: the official client's test server on a port of its own.
//
//	pubsub -address 127.0.0.1:8085            serves
//	pubsub -address 127.0.0.1:8085 -ask       asks a running server for its topics, and fails where it does not answer
//	pubsub -address … -project P -publish TOPIC [-key K] [-attribute NAME=VALUE]… -data TEXT
//	pubsub -address … -project P -receive SUBSCRIPTION [-count N]
//
// It keeps everything in memory. The last two are the official client, as another program would use it.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	pb "cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"cloud.google.com/go/pubsub/v2/pstest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

func main() {
	address := flag.String("address", "127.0.0.1:8085", "host and port")
	ask := flag.Bool("ask", false, "ask the server there for its topics, then end")
	streamTimeout := flag.Duration("stream-timeout", 0, "close each stream after this time, as the service does after half an hour; 0 is never")
	project := flag.String("project", "", "the project of -publish and -receive")
	toPublish := flag.String("publish", "", "publish one message to this topic, then end")
	data := flag.String("data", "", "what -publish publishes")
	key := flag.String("key", "", "the ordering key of -publish")
	extra := attributes{}
	flag.Var(extra, "attribute", "an attribute of -publish, NAME=VALUE")
	toReceive := flag.String("receive", "", "receive from this subscription and print each message as JSON, then end")
	count := flag.Int("count", 1, "how many messages -receive takes")
	flag.Parse()

	act := func() error { return listTopics(*address) }
	switch {
	case *toPublish != "":
		act = func() error { return publish(*address, *project, *toPublish, *data, *key, extra) }
	case *toReceive != "":
		act = func() error { return receive(*address, *project, *toReceive, *count) }
	case !*ask:
		serve(*address, *streamTimeout)
		return
	}
	if err := act(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(address string, streamTimeout time.Duration) {

	// The test server listens on a port of its own, which nobody is told. Ours serves the same state with the service's limit
	// on requests, where gRPC's default is 4 MiB, with streams that keep their limits, and survives what kills the other.
	state := &service{
		GServer: &pstest.NewServerWithAddress("127.0.0.1:0").GServer, streamTimeout: streamTimeout, out: map[string]*handed{},
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer(
		grpc.MaxRecvMsgSize(4*maxRequest),
		// The service bears a client that asks often whether the connection stands; gRPC's default is every five minutes.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 100 * time.Millisecond, PermitWithoutStream: true}),
		grpc.ChainUnaryInterceptor(refuse, limit), grpc.StreamInterceptor(refuseStream),
	)
	pb.RegisterPublisherServer(server, state)
	pb.RegisterSubscriberServer(server, state)
	pb.RegisterSchemaServiceServer(server, state)
	go func() { log.Fatal(server.Serve(listener)) }()
	log.Printf("serving on %s", listener.Addr())

	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	<-stop
}

func listTopics(address string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy())
	if err != nil {
		return err
	}
	defer connection.Close()
	_, err = pb.NewPublisherClient(connection).ListTopics(ctx, &pb.ListTopicsRequest{Project: "projects/ask"})
	return err
}

// maxRequest is the service's limit on a request, in bytes.
const maxRequest = 10 << 20

// limit refuses what the service refuses, in its words.
func limit(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if message, ok := request.(proto.Message); ok && proto.Size(message) > maxRequest {
		return nil, status.Errorf(codes.InvalidArgument, "Request payload size exceeds the limit: %d bytes.", maxRequest)
	}
	return handle(ctx, request)
}
