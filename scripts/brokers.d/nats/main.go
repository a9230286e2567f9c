// What the NATS test servers need beside the server: operator mode's files, and a question that only a ready server answers.
//
//	nats credentials -port 4222 DIR    writes keys, an account, a server.conf part and *.creds files to DIR
//	nats ask -url nats://127.0.0.1:4222 [-ca FILE] [-creds FILE]   asks for JetStream's account information
//
// A user's password and a token are read from the variables NATS_USER, NATS_PASSWORD and NATS_TOKEN.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	if len(arguments) == 0 {
		return fmt.Errorf("usage: nats credentials|ask")
	}
	flags := flag.NewFlagSet(arguments[0], flag.ContinueOnError)
	switch arguments[0] {
	case "credentials":
		limited := flags.String("limited", "limited", "first token of the subjects that the limited user may use")
		if err := flags.Parse(arguments[1:]); err != nil {
			return err
		}
		return credentials(flags.Arg(0), *limited)
	case "ask":
		url := flags.String("url", "nats://127.0.0.1:4222", "the server")
		ca := flags.String("ca", "", "certificate of the authority")
		creds := flags.String("creds", "", "credentials file")
		if err := flags.Parse(arguments[1:]); err != nil {
			return err
		}
		return ask(*url, *ca, *creds)
	}
	return fmt.Errorf("unknown command %s", arguments[0])
}

// ask connects and waits for JetStream: a server accepts connections before it has read its streams.
func ask(url, ca, creds string) error {
	options := []nats.Option{nats.Timeout(3 * time.Second), nats.NoReconnect()}
	if ca != "" {
		options = append(options, nats.RootCAs(ca))
	}
	if creds != "" {
		options = append(options, nats.UserCredentials(creds))
	}
	if user := os.Getenv("NATS_USER"); user != "" {
		options = append(options, nats.UserInfo(user, os.Getenv("NATS_PASSWORD")))
	}
	if token := os.Getenv("NATS_TOKEN"); token != "" {
		options = append(options, nats.Token(token))
	}
	connection, err := nats.Connect(url, options...)
	if err != nil {
		return err
	}
	defer connection.Close()
	stream, err := jetstream.New(connection)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	_, err = stream.AccountInfo(ctx)
	return err
}

// credentials makes an operator, a system account, an account with JetStream, and two users of it.
func credentials(dir, limited string) error {
	operator, operatorKey, err := pair(nkeys.CreateOperator)
	if err != nil {
		return err
	}
	_, systemKey, err := pair(nkeys.CreateAccount)
	if err != nil {
		return err
	}
	account, accountKey, err := pair(nkeys.CreateAccount)
	if err != nil {
		return err
	}

	operatorClaims := jwt.NewOperatorClaims(operatorKey)
	operatorClaims.Name = "trunkline"
	operatorClaims.SystemAccount = systemKey
	operatorToken, err := operatorClaims.Encode(operator)
	if err != nil {
		return err
	}
	systemClaims := jwt.NewAccountClaims(systemKey)
	systemClaims.Name = "SYS"
	systemToken, err := systemClaims.Encode(operator)
	if err != nil {
		return err
	}
	accountClaims := jwt.NewAccountClaims(accountKey)
	accountClaims.Name = "trunkline"
	accountClaims.Limits.JetStreamLimits = jwt.JetStreamLimits{
		MemoryStorage: jwt.NoLimit, DiskStorage: jwt.NoLimit, Streams: jwt.NoLimit, Consumer: jwt.NoLimit,
		MaxAckPending: jwt.NoLimit, MemoryMaxStreamBytes: jwt.NoLimit, DiskMaxStreamBytes: jwt.NoLimit,
	}
	accountToken, err := accountClaims.Encode(operator)
	if err != nil {
		return err
	}

	if err := user(dir, "trunkline", account, jwt.Permissions{}); err != nil {
		return err
	}
	if err := user(dir, "limited", account, limitedPermissions(limited)); err != nil {
		return err
	}
	conf := fmt.Sprintf("operator: %s\nsystem_account: %s\nresolver: MEMORY\nresolver_preload: {\n  %s: %s\n  %s: %s\n}\n",
		operatorToken, systemKey, systemKey, systemToken, accountKey, accountToken)
	return os.WriteFile(filepath.Join(dir, "operator.conf"), []byte(conf), 0o600)
}

// limitedPermissions let a user publish and consume what exists, and create nothing.
func limitedPermissions(first string) jwt.Permissions {
	return jwt.Permissions{
		Pub: jwt.Permission{Allow: jwt.StringList{
			first + ".>", "$JS.API.INFO", "$JS.API.STREAM.INFO.*", "$JS.API.STREAM.NAMES", "$JS.API.CONSUMER.INFO.*.*",
			"$JS.API.CONSUMER.MSG.NEXT.*.*", "$JS.ACK.>",
		}},
		Sub: jwt.Permission{Allow: jwt.StringList{first + ".>", "_INBOX.>"}},
	}
}

func user(dir, name string, account nkeys.KeyPair, permissions jwt.Permissions) error {
	key, public, err := pair(nkeys.CreateUser)
	if err != nil {
		return err
	}
	claims := jwt.NewUserClaims(public)
	claims.Name = name
	claims.Permissions = permissions
	token, err := claims.Encode(account)
	if err != nil {
		return err
	}
	seed, err := key.Seed()
	if err != nil {
		return err
	}
	file, err := jwt.FormatUserConfig(token, seed)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, name+".creds"), file, 0o600)
}

func pair(create func() (nkeys.KeyPair, error)) (nkeys.KeyPair, string, error) {
	key, err := create()
	if err != nil {
		return nil, "", err
	}
	public, err := key.PublicKey()
	return key, public, err
}
