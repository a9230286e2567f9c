package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"cloud.google.com/go/pubsub/v2"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// attributes are NAME=VALUE flags.
type attributes map[string]string

func (a attributes) String() string { return fmt.Sprint(map[string]string(a)) }

func (a attributes) Set(text string) error {
	name, value, ok := strings.Cut(text, "=")
	if !ok {
		return errors.New("an attribute is written NAME=VALUE")
	}
	a[name] = value
	return nil
}

// client is the official client for the server at the address, as a program that knows nothing else would use it.
func client(ctx context.Context, address, project string) (*pubsub.Client, error) {
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy())
	if err != nil {
		return nil, err
	}
	return pubsub.NewClient(ctx, project, option.WithGRPCConn(connection))
}

// publish publishes one message and waits for its confirm.
func publish(address, project, topic, data, key string, attributes map[string]string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	client, err := client(ctx, address, project)
	if err != nil {
		return err
	}
	defer client.Close()
	publisher := client.Publisher(topic)
	publisher.EnableMessageOrdering = key != ""
	defer publisher.Stop()
	message := &pubsub.Message{Data: []byte(data), Attributes: attributes, OrderingKey: key}
	_, err = publisher.Publish(ctx, message).Get(ctx)
	return err
}

// receive acks that many messages and prints each as a line of JSON.
func receive(address, project, subscription string, count int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	client, err := client(ctx, address, project)
	if err != nil {
		return err
	}
	defer client.Close()
	subscriber := client.Subscriber(subscription)
	// One after the other, so that the lines stand in the order in which they came.
	subscriber.ReceiveSettings.NumGoroutines = 1
	subscriber.ReceiveSettings.MaxOutstandingMessages = 1
	left := count
	err = subscriber.Receive(ctx, func(_ context.Context, message *pubsub.Message) {
		if left == 0 {
			message.Nack()
			return
		}
		line := map[string]any{"data": string(message.Data), "attributes": message.Attributes, "orderingKey": message.OrderingKey}
		if err := json.NewEncoder(os.Stdout).Encode(line); err != nil {
			message.Nack()
			return
		}
		message.Ack()
		if left--; left == 0 {
			cancel()
		}
	})
	if err == nil && left > 0 {
		err = fmt.Errorf("%d of %d messages did not come", left, count)
	}
	return err
}
