package main

import (
	"context"
	"errors"
	"io"
	"log"
	"sync"
	"time"

	pb "cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"cloud.google.com/go/pubsub/v2/pstest"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
)

// service is the test server with streams that keep the limits their clients set, as the service does: the test server's own
// ignore them, and hand over one message at a time.
type service struct {
	*pstest.GServer
	// Streams are closed after this time; 0 is never.
	streamTimeout time.Duration

	mu sync.Mutex
	// What was handed over on a stream and is not settled, by its ack id.
	out map[string]*handed
}

type handed struct {
	stream   *limits
	size     int
	deadline time.Time
}

// limits of one stream, and what counts towards them. Guarded by the service's lock.
type limits struct {
	maxMessages, maxBytes int64
	out                   map[string]*handed
	bytes                 int
}

const (
	// How often a stream looks for messages.
	look = 3 * time.Millisecond
	// Messages of one response.
	response = 100
)

func (s *service) StreamingPull(stream pb.Subscriber_StreamingPullServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	subscription, err := s.GetSubscription(stream.Context(), &pb.GetSubscriptionRequest{Subscription: first.Subscription})
	if err != nil {
		return err
	}
	flow := &limits{maxMessages: first.MaxOutstandingMessages, maxBytes: first.MaxOutstandingBytes, out: map[string]*handed{}}
	defer s.leave(flow)
	ended := make(chan error, 1)
	go func() { ended <- s.listen(stream, first.Subscription) }()
	var over <-chan time.Time
	if s.streamTimeout > 0 {
		over = time.After(s.streamTimeout)
	}
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			return err
		case <-over:
			return nil
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-tick.C:
		}
		for {
			messages, err := s.pull(stream.Context(), first, flow)
			if err != nil {
				return err
			}
			if len(messages) == 0 {
				break
			}
			err = stream.Send(&pb.StreamingPullResponse{
				ReceivedMessages: messages,
				SubscriptionProperties: &pb.StreamingPullResponse_SubscriptionProperties{
					ExactlyOnceDeliveryEnabled: subscription.EnableExactlyOnceDelivery,
					MessageOrderingEnabled:     subscription.EnableMessageOrdering,
				},
			})
			if err != nil {
				return err
			}
		}
	}
}

// leave keeps no account of what was handed over on a stream that has ended.
func (s *service) leave(flow *limits) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range flow.out {
		s.forget(id)
	}
}

// listen takes what the client says on the stream, until it says no more.
func (s *service) listen(stream pb.Subscriber_StreamingPullServer, subscription string) error {
	for {
		request, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if len(request.AckIds) > 0 {
			if _, err := s.Acknowledge(stream.Context(), &pb.AcknowledgeRequest{Subscription: subscription, AckIds: request.AckIds}); err != nil {
				return err
			}
		}
	}
}

// pull takes as many messages as the stream has room for.
func (s *service) pull(ctx context.Context, of *pb.StreamingPullRequest, flow *limits) ([]*pb.ReceivedMessage, error) {
	room := s.room(flow)
	if room == 0 {
		return nil, nil
	}
	pulled, err := s.GServer.Pull(ctx, &pb.PullRequest{
		Subscription: of.Subscription, MaxMessages: int32(room), ReturnImmediately: true, //nolint:staticcheck // it must not wait
	})
	if err != nil || len(pulled.ReceivedMessages) == 0 {
		return nil, err
	}
	deadline := time.Now().Add(time.Duration(of.StreamAckDeadlineSeconds) * time.Second)
	ids := make([]string, 0, len(pulled.ReceivedMessages))
	s.mu.Lock()
	for _, message := range pulled.ReceivedMessages {
		id := of.Subscription + " " + message.AckId
		s.forget(id)
		handed := &handed{stream: flow, size: proto.Size(message), deadline: deadline}
		s.out[id], flow.out[id] = handed, handed
		flow.bytes += handed.size
		ids = append(ids, message.AckId)
	}
	s.mu.Unlock()
	_, err = s.GServer.ModifyAckDeadline(ctx, &pb.ModifyAckDeadlineRequest{
		Subscription: of.Subscription, AckIds: ids, AckDeadlineSeconds: of.StreamAckDeadlineSeconds,
	})
	return pulled.ReceivedMessages, err
}

func (s *service) room(flow *limits) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for id, handed := range flow.out {
		if now.After(handed.deadline) {
			s.forget(id)
		}
	}
	if flow.maxBytes > 0 && int64(flow.bytes) >= flow.maxBytes {
		return 0
	}
	room := response
	if flow.maxBytes > 0 {
		// A few at a time, so that they do not pass the bytes by much.
		room = 8
	}
	if flow.maxMessages > 0 {
		room = min(room, int(flow.maxMessages)-len(flow.out))
	}
	return max(room, 0)
}

// forget counts a message no more. With the lock held.
func (s *service) forget(id string) {
	if handed := s.out[id]; handed != nil {
		handed.stream.bytes -= handed.size
		delete(handed.stream.out, id)
		delete(s.out, id)
	}
}

func (s *service) Acknowledge(ctx context.Context, request *pb.AcknowledgeRequest) (*emptypb.Empty, error) {
	s.mu.Lock()
	for _, id := range request.AckIds {
		s.forget(request.Subscription + " " + id)
	}
	s.mu.Unlock()
	return s.GServer.Acknowledge(ctx, request)
}

// ModifyAckDeadline hands over the ids one by one and ignores those that the test server does not know, as the service ignores
// leases that have ended. The test server dies of a nil pointer there: a client that lives on while the server is started anew
// asks for just that.
func (s *service) ModifyAckDeadline(ctx context.Context, request *pb.ModifyAckDeadlineRequest) (*emptypb.Empty, error) {
	s.mu.Lock()
	for _, id := range request.AckIds {
		id = request.Subscription + " " + id
		if request.AckDeadlineSeconds == 0 {
			s.forget(id)
		} else if handed := s.out[id]; handed != nil {
			handed.deadline = time.Now().Add(time.Duration(request.AckDeadlineSeconds) * time.Second)
		}
	}
	s.mu.Unlock()
	if len(request.AckIds) == 0 {
		return s.GServer.ModifyAckDeadline(ctx, request)
	}
	for _, id := range request.AckIds {
		one := &pb.ModifyAckDeadlineRequest{
			Subscription: request.Subscription, AckIds: []string{id}, AckDeadlineSeconds: request.AckDeadlineSeconds,
		}
		if err := survive(func() error {
			_, err := s.GServer.ModifyAckDeadline(ctx, one)
			return err
		}); err != nil {
			return nil, err
		}
	}
	return &emptypb.Empty{}, nil
}

func survive(call func() error) (err error) {
	defer func() {
		if cause := recover(); cause != nil {
			log.Printf("ignored an unknown ack id: %v", cause)
			err = nil
		}
	}()
	return call()
}
