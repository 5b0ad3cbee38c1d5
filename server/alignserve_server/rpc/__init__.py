"""gRPC: conversion of messages, streams, statuses, health. The only package that uses protobuf."""
