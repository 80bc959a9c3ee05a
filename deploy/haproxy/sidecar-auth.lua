-- HAProxy's action "lua.auth_sidecar": asks the sidecar about a request (HAProxy 2.6 or newer). See haproxy.cfg.
--
-- 2xx: the request goes on, and txn.integration_id and its like say who calls. Other answers of the sidecar reach
-- the client with status, headers and body. No answer: 503 (fail closed).
-- Environment: SIDECAR_URL, and SIDECAR_DST for a Unix socket, such as unix@/run/sidecar/http.sock.
--
-- HAProxy 2.6 asks up to three more times when the sidecar does not answer in time, which cannot be turned off:
-- a request may then take up to four tokens, and 503 comes after up to four times TIMEOUT_MS.
local URL = os.getenv("SIDECAR_URL") or "http://127.0.0.1:9192/auth/haproxy"
local DST = os.getenv("SIDECAR_DST")
local TIMEOUT_MS = 500
local FOR_CLIENT = {
  limit = "x-ratelimit-limit",
  remaining = "x-ratelimit-remaining",
  reset = "x-ratelimit-reset",
  would_deny = "x-auth-would-deny",
}
local IDENTITY = {
  integration_id = "x-integration-id",
  integration_name = "x-integration-name",
  credential_id = "x-credential-id",
  decision_id = "x-decision-id",
}
local DENIAL = {
  "content-type", "cache-control", "www-authenticate", "retry-after", "x-auth-reason", "x-decision-id",
}
local UNAVAILABLE = '{"type":"about:blank","title":"Authorization unavailable","status":503,'
  .. '"detail":"The request could not be checked. Retry in a second."}'

local function first(headers, name)
  local values = headers[name]
  if values then return values[0] end
  return nil
end

local function copies(values)
  local all, index = {}, 0
  while values[index] do
    all[index + 1] = values[index]
    index = index + 1
  end
  return all
end

local function answer_unavailable(txn)
  txn:done(txn:reply{
    status = 503,
    reason = "Service Unavailable",
    headers = { ["content-type"] = { "application/problem+json" }, ["retry-after"] = { "1" } },
    body = UNAVAILABLE,
  })
end

local function ask(txn)
  local request = txn.http:req_get_headers()
  local headers = {
    ["x-forwarded-method"] = { txn.f:method() },
    ["x-forwarded-uri"] = { txn.f:pathq() }, -- after normalize-uri
    ["x-forwarded-for"] = { txn.f:src() },
    ["x-request-id"] = { txn.f:unique_id() },
    ["host"] = { first(request, "host") or "" },
  }
  -- Every copy of the headers that may hold an API key, so that the sidecar sees two different keys.
  for _, name in ipairs({ "x-api-key", "authorization", "content-type" }) do
    if request[name] then headers[name] = copies(request[name]) end
  end
  local options = { url = URL, headers = headers, timeout = TIMEOUT_MS }
  if DST then options.dst = DST end
  local ok, answer = pcall(function() return core.httpclient():get(options) end)
  -- HAProxy's client answers 503 or 504 itself when the sidecar does not.
  if not ok or not answer or not answer.headers or not first(answer.headers, "x-auth-status") then
    return answer_unavailable(txn)
  end
  local status = answer.status
  for variable, name in pairs(FOR_CLIENT) do
    local value = first(answer.headers, name)
    if value and value ~= "" then txn:set_var("txn." .. variable, value) end
  end
  if status < 300 then
    for variable, name in pairs(IDENTITY) do
      txn:set_var("txn." .. variable, first(answer.headers, name) or "")
    end
    return
  end
  local kept = {}
  for _, name in ipairs(DENIAL) do
    local value = first(answer.headers, name)
    if value then kept[name] = { value } end
  end
  txn:done(txn:reply{ status = status, reason = "Denied", headers = kept, body = answer.body or "" })
end

core.register_action("auth_sidecar", { "http-req" }, ask, 0)
