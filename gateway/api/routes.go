package api

import (
	"context"
	_ "embed" // the document
	"net/http"
	"reflect"
)

// routes is everything that a node can be asked. A new line here is served, checked and, after `go test ./gateway/api -run TestOpenAPI -update`, documented.
var routes = []*route{
	forTenant(ask(PathStatus, RoleTenant, "The whole node at one moment; a tenant sees its own figures alone.",
		func(b Stater, ctx context.Context, q StatusQuery) (*Status, error) { return b.Status(ctx, q.Rules) }), anyStatus, statusOfTenant),
	forTenant(ask(PathSessions, RoleTenant, "Live sessions that the query matches.", Backend.Sessions), narrowSessions, sessionsOfTenant),
	forTenant(get(PathDrops, RoleTenant, "Dropped packets by reason, tenant, port, block and rule.", Backend.Drops), func(*none, string) error { return nil }, dropsOfTenant),
	get(PathRoutes, RoleReadOnly, "The routing tables of the backbone and of every tenant.", Backend.Routes),
	get(PathNeighbours, RoleReadOnly, "Next hops and hosts on the links, with their MAC addresses.", Backend.Neighbours),
	get(PathPorts, RoleReadOnly, "Network devices, their queues and settings, and the interfaces on them.", Backend.Ports),

	get(PathPolicy, RoleReadOnly, "The text of the policy that is served.", Changer.Policy),
	post(PathDiff, RoleOperator, "What a policy would change, and which live sessions it would end.", Backend.Diff),
	changing("demarc history", post(PathApply, RoleOperator, "Serve a new policy; answers when every worker serves it.", Changer.Apply)),
	changing("demarc history", post(PathConfirm, RoleOperator, "Keep the provisional revision.", Historian.Confirm)),
	changing("demarc history", post(PathRollback, RoleOperator, "Serve the text of an earlier revision again as a new one, or take the provisional one back.", Historian.Rollback)),
	get(PathHistory, RoleReadOnly, "The revisions that are kept, newest first: who, when, why, and what became of them.", Historian.History),
	ask(PathRevision, RoleReadOnly, "One kept revision with its text; without a number the one that is served.",
		func(b Historian, ctx context.Context, q RevisionQuery) (*Shown, error) { return b.Show(ctx, q.Number) }),
	tellRefused(ask(PathAudit, RoleOperator, "Who wanted which change, and what came of it; the latest last.",
		func(b Historian, ctx context.Context, q AuditQuery) (*Audit, error) { return b.Audit(ctx, q.After) })),
	get(PathRevisions, RoleReadOnly, "The applied policies that are kept, newest first.", Supporter.Revisions),

	get(PathBlocks, RoleReadOnly, "Addresses that are blocked for a while.", Actor.Blocks),
	changing("demarc blocks", post(PathBlock, RoleOperator, "Block an address for a while, as source and as destination.", Actor.Block)),
	changing("demarc blocks", post(PathUnblock, RoleOperator, "End blocks before their time.", Actor.Unblock)),
	changing("demarc sessions", post(PathCut, RoleOperator, "End live sessions, or only count them.", Actor.Cut)),

	post(PathExplain, RoleOperator, "What would become of a packet now, stage by stage; nothing is sent and nothing stays of it.", Looker.Explain),
	stream(PathFollow, RoleOperator, "Follow live packets.", Looker.Trace, endOfStream),
	stream(PathCapture, RoleOperator, "Copy live packets, with what they carry.", Looker.Capture, endOfStream),
	stream(PathDropped, RoleOperator, "Dropped packets one by one, with their first bytes.", Looker.Dropped, endOfStream),
	stream(PathPing, RoleOperator, "Send echo requests from an address of the gateway.", Prober.Ping, endOfProbe),
	stream(PathTrace, RoleOperator, "Find the way to an address, from one of the gateway's.", Prober.Traceroute, endOfProbe),

	get(PathMembers, RoleReadOnly, "The members of the cluster as this node sees them.", Membership.Members),
	changing("demarc audit", post(PathToken, RoleOperator, "Make a token that one node may join by, once and for a while.", Membership.Token)),
	changing("demarc cluster members", post(PathRemove, RoleOperator, "Take a member out for good.", Membership.Remove)),
	changing("demarc cluster members", post(PathPromote, RoleOperator, "Give a newcomer that has caught up its vote.", Membership.Promote)),
	changing("demarc cluster members", post(PathLead, RoleOperator, "Let a member lead.", Membership.Lead)),
	changing("demarc cluster members", post(PathLeave, RoleOperator, "Take the node that is asked out for good.", Membership.Leave)),
	changing("demarc cluster members", post(PathRevoke, RoleOperator, "Refuse a client's certificates on every node, or take that back.", Membership.Revoke)),

	get(PathGroups, RoleReadOnly, "Groups: who serves them, and why they are not protected.", Grouper.Groups),
	get(PathGroupEvents, RoleReadOnly, "What was agreed on about groups, and what this node did and saw.", Grouper.GroupEvents),
	changing("demarc group", post(PathGroupMove, RoleOperator, "Hand a group over to a node whose copy is whole.", Grouper.MoveGroup)),
	changing("demarc group", post(PathGroupTake, RoleOperator, "Have the node that is asked own a group by force.", Grouper.TakeGroup)),
	changing("demarc group", post(PathDrain, RoleOperator, "Have a node own no group, or let it own some again.", Grouper.Drain)),

	get(PathKept, RoleReadOnly, "How much of the past the cluster keeps, and has.", Membership.Kept),
	changing("demarc cluster keep", post(PathKeep, RoleOperator, "Keep more or less of the past.", Membership.Keep)),

	get(PathNode, RoleOperator, "The text of the node file that the node was started with.", Supporter.NodeFile),
	get(PathLog, RoleOperator, "The last lines of the node's log.", Supporter.Log),
	metricsRoute,
	anyTenant[[]byte](openAPIRoute),
}

// StatusQuery is the query of PathStatus.
type StatusQuery struct {
	Rules bool `json:"rules,omitempty"` // also how often each rule decided
}

func endOfStream(why string) *StreamLine { return &StreamLine{End: &StreamEnd{Why: why, Failed: true}} }

func endOfProbe(why string) *ProbeEvent { return &ProbeEvent{Event: "failed", Error: why} }

var metricsRoute = &route{method: http.MethodGet, path: PathMetrics, least: RoleReadOnly, does: "Figures for Prometheus.", part: reflect.TypeFor[any](), query: reflect.TypeFor[none](),
	gives: reflect.TypeFor[[]byte](), media: mediaText, serve: func(s *Server, w http.ResponseWriter, r *http.Request) error {
		s.cfg.Handler.ServeHTTP(w, r)
		return nil
	}}

// openAPI is written from routes and the types that they name by TestOpenAPI -update; docs/openapi.json is the same.
//
//go:embed openapi.json
var openAPI []byte

var openAPIRoute = func() *route {
	rt := get(PathOpenAPI, RoleTenant, "This interface, as an OpenAPI document.", func(any, context.Context) ([]byte, error) { return openAPI, nil })
	rt.media = mediaJSON
	return rt
}()
