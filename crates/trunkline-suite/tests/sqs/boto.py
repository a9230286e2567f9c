"""AWS's client for Python, as a program that knows nothing of Trunkline would use it.

boto.py ENDPOINT REGION send QUEUE BODY [NAME=VALUE]...    prints nothing
boto.py ENDPOINT REGION receive QUEUE                      deletes one message and prints it as JSON
"""

import json
import sys

import boto3
from botocore.config import Config

endpoint, region, verb, queue, *rest = sys.argv[1:]
sqs = boto3.client(
    "sqs",
    endpoint_url=endpoint,
    region_name=region,
    aws_access_key_id="AKIDTEST",
    aws_secret_access_key="not-a-secret",
    config=Config(proxies={}, connect_timeout=10, read_timeout=30),
)
url = sqs.get_queue_url(QueueName=queue)["QueueUrl"]
if verb == "send":
    body, *attributes = rest
    pairs = (attribute.split("=", 1) for attribute in attributes)
    typed = {name: {"DataType": "String", "StringValue": value} for name, value in pairs}
    sqs.send_message(QueueUrl=url, MessageBody=body, MessageAttributes=typed)
else:
    answer = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=1, WaitTimeSeconds=10, MessageAttributeNames=["All"])
    message = answer["Messages"][0]
    sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    attributes = {name: value["StringValue"] for name, value in message.get("MessageAttributes", {}).items()}
    print(json.dumps({"body": message["Body"], "attributes": attributes}))
