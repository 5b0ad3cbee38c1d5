# frozen_string_literal: true

module Alignserve
  VERSION = "0.1.0"
end
