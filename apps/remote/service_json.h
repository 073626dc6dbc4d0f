// The service interface as JSON: values for the enrolment API and the command line, and commands as they travel over
// the local control socket.
#pragma once

#include <boost/json.hpp>

#include "coordinator/service.h"

namespace porthole::remote {

boost::json::object to_json(const coordinator::AccountInfo& account);
boost::json::object to_json(const coordinator::DeviceInfo& device);
boost::json::object to_json(const coordinator::PendingInfo& pending);

// One command, e.g. {"command":"account_create","name":"home"}. The answer is {"ok":true,...} or
// {"ok":false,"error":"sentence","code":"not found"}. Commands and members: see commands.cpp, which writes them.
boost::json::object run_command(coordinator::Service& service, Clock clock, const boost::json::object& command);

}  // namespace porthole::remote
