package com.alignserve;

/** Which calls are served first. */
public enum Priority {
  /** For calls that a user is waiting for: the default. */
  INTERACTIVE("interactive"),
  /** For work that can wait, such as embedding an archive. */
  BULK("bulk");

  final String value;

  Priority(String value) {
    this.value = value;
  }
}
