package virtiofs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"

	"golang.org/x/sys/unix"
)

// The messages of the vhost-user protocol that a device without a configuration
// space of its own, without migration and without an IOMMU gets.
const (
	reqGetFeatures         = 1
	reqSetFeatures         = 2
	reqSetOwner            = 3
	reqResetOwner          = 4
	reqSetMemTable         = 5
	reqSetVringNum         = 8
	reqSetVringAddr        = 9
	reqSetVringBase        = 10
	reqGetVringBase        = 11
	reqSetVringKick        = 12
	reqSetVringCall        = 13
	reqSetVringErr         = 14
	reqGetProtocolFeatures = 15
	reqSetProtocolFeatures = 16
	reqGetQueueNum         = 17
	reqSetVringEnable      = 18
)

const (
	flagVersion   = 1
	flagReply     = 1 << 2
	flagNeedReply = 1 << 3

	noFD = 1 << 8 // beside a queue's index: no descriptor came

	featureIndirect = 1 << 28
	featureEventIdx = 1 << 29
	featureProtocol = 1 << 30
	featureVersion1 = 1 << 32
	features        = featureIndirect | featureEventIdx | featureProtocol | featureVersion1

	protocolMQ       = 1 << 0
	protocolReplyAck = 1 << 3
	protocolFeatures = protocolMQ | protocolReplyAck

	// maxQueues are one for FORGET and those for requests.
	maxQueues = 9

	maxMessage = 8 + maxRegions*32
	maxFDs     = maxRegions
)

// device is one end of a vhost-user connection: what the monitor of a virtual
// machine tells of the device's queues and memory. One goroutine has it.
type device struct {
	conn     *net.UnixConn
	log      *slog.Logger
	mem      *memory
	features uint64
	queues   [maxQueues]*queue
}

func newDevice(conn *net.UnixConn, s *session, log *slog.Logger) *device {
	d := &device{conn: conn, log: log}
	for i := range d.queues {
		d.queues[i] = &queue{s: s, log: log, index: i, kick: -1, call: -1}
	}
	return d
}

// message is one message as it came.
type message struct {
	request uint32
	flags   uint32
	body    []byte
	fds     []int
}

func (m *message) closeFDs() {
	for _, fd := range m.fds {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// takeFD hands a descriptor over to whoever asks.
func (m *message) takeFD() int {
	fd := m.fds[0]
	m.fds[0] = -1
	return fd
}

// run works on messages until the connection ends. An end between two messages
// is none of an error.
func (d *device) run() error {
	defer d.end()
	for {
		m, err := d.read()
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, unix.ECONNRESET) {
				return nil
			}
			return fmt.Errorf("vhost-user: %w", err)
		}
		err = d.handle(&m)
		m.closeFDs()
		if err != nil {
			return fmt.Errorf("vhost-user message %d: %w", m.request, err)
		}
	}
}

// end stops all queues and lets the guest's memory go.
func (d *device) end() {
	for _, q := range d.queues {
		q.halt()
		q.setKick(-1)
		q.setCall(-1)
	}
	d.mem.unmap()
	_ = d.conn.Close()
}

const messageHead = 12

// read reads a message with its descriptors.
func (d *device) read() (m message, err error) {
	var head [messageHead]byte
	oob := make([]byte, unix.CmsgSpace(maxFDs*4))
	n, oobn, flags, _, err := d.conn.ReadMsgUnix(head[:], oob)
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		return m, err
	}
	defer func() {
		if err != nil {
			m.closeFDs()
			m.fds = nil
		}
	}()
	if m.fds, err = received(oob[:oobn]); err != nil {
		return m, err
	}
	if flags&unix.MSG_CTRUNC != 0 {
		return m, fmt.Errorf("more than %d descriptors", maxFDs)
	}
	if _, err = io.ReadFull(d.conn, head[n:]); err != nil {
		return m, unexpected(err)
	}
	m.request, m.flags = binary.LittleEndian.Uint32(head[0:]), binary.LittleEndian.Uint32(head[4:])
	size := binary.LittleEndian.Uint32(head[8:])
	if m.flags&3 != flagVersion || size > maxMessage {
		return m, fmt.Errorf("message %d of version %d with %d bytes; version %d with up to %d is known", m.request, m.flags&3, size, flagVersion, maxMessage)
	}
	m.body = make([]byte, size)
	_, err = io.ReadFull(d.conn, m.body)
	return m, unexpected(err)
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// received are the descriptors in a control message.
func received(oob []byte) (fds []int, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("control message: %w", err)
	}
	for i := range msgs {
		if got, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	return fds, nil
}

// reply answers m with body.
func (d *device) reply(m *message, body []byte) error {
	b := binary.LittleEndian.AppendUint32(nil, m.request)
	b = binary.LittleEndian.AppendUint32(b, flagVersion|flagReply)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(body)))
	_, err := d.conn.Write(append(b, body...))
	return err
}

func (d *device) reply64(m *message, v uint64) error {
	return d.reply(m, binary.LittleEndian.AppendUint64(nil, v))
}

// handle works on one message. What cannot be done is told to the monitor if it
// asks, and logged; an error ends the connection.
func (d *device) handle(m *message) error {
	switch m.request {
	case reqGetFeatures:
		return d.reply64(m, features)
	case reqGetProtocolFeatures:
		return d.reply64(m, protocolFeatures)
	case reqGetQueueNum:
		return d.reply64(m, maxQueues)
	case reqGetVringBase:
		return d.getBase(m)
	}
	failed, err := d.change(m)
	if err != nil {
		return err
	}
	if failed != nil {
		d.log.Warn("a monitor's wish is not met", "message", m.request, "error", failed)
	}
	if m.flags&flagNeedReply == 0 {
		return nil
	}
	var code uint64
	if failed != nil {
		code = 1
	}
	return d.reply64(m, code)
}

// change works on a message that has no answer of its own. failed is that it
// could not be done, err that it is none.
func (d *device) change(m *message) (failed, err error) {
	switch m.request {
	case reqSetOwner:
		return nil, nil
	case reqResetOwner:
		for _, q := range d.queues {
			q.halt()
			q.enabled = false
		}
		return nil, nil
	case reqSetFeatures, reqSetProtocolFeatures:
		return nil, d.setFeatures(m)
	case reqSetMemTable:
		return d.setMemory(m), nil
	case reqSetVringAddr:
		return d.setAddr(m)
	case reqSetVringNum, reqSetVringBase, reqSetVringEnable:
		return d.setState(m)
	case reqSetVringKick, reqSetVringCall, reqSetVringErr:
		return d.setFD(m)
	}
	return nil, fmt.Errorf("not known; of %d bytes", len(m.body))
}

func (d *device) setFeatures(m *message) error {
	if len(m.body) != 8 {
		return fmt.Errorf("features in %d bytes", len(m.body))
	}
	v, offered := binary.LittleEndian.Uint64(m.body), uint64(features)
	if m.request == reqSetProtocolFeatures {
		offered = protocolFeatures
	}
	if v&^offered != 0 {
		return fmt.Errorf("features %#x were not offered", v&^offered)
	}
	if m.request == reqSetFeatures {
		d.features = v
	}
	return nil
}

// setMemory replaces the guest's memory. Queues that run are stopped for that.
func (d *device) setMemory(m *message) error {
	mem, err := mapMemory(m.body, m.fds)
	if err != nil {
		return err
	}
	var ran []*queue
	for _, q := range d.queues {
		if q.running != nil {
			q.halt()
			ran = append(ran, q)
		}
	}
	d.mem.unmap()
	d.mem = mem
	for _, q := range ran {
		err = errors.Join(err, d.start(q))
	}
	return err
}

func (d *device) start(q *queue) error { return q.start(d.mem, d.features&featureEventIdx != 0) }

// queue is the one that a message names in its first four bytes.
func (d *device) queue(m *message, size int) (*queue, error) {
	if len(m.body) != size {
		return nil, fmt.Errorf("%d bytes instead of %d", len(m.body), size)
	}
	i := binary.LittleEndian.Uint32(m.body)
	if m.request == reqSetVringKick || m.request == reqSetVringCall || m.request == reqSetVringErr {
		i &= noFD - 1
	}
	if i >= maxQueues {
		return nil, fmt.Errorf("queue %d of %d", i, maxQueues)
	}
	return d.queues[i], nil
}

func (d *device) setState(m *message) (failed, err error) {
	q, err := d.queue(m, 8)
	if err != nil {
		return nil, err
	}
	v := binary.LittleEndian.Uint32(m.body[4:])
	if m.request == reqSetVringEnable {
		if q.enabled = v != 0; !q.enabled {
			q.halt()
			return nil, nil
		}
		return d.start(q), nil
	}
	if q.running != nil {
		return errors.New("the queue runs"), nil
	}
	switch {
	case m.request == reqSetVringBase:
		q.next = uint16(v)
	case v > maxRing:
		return fmt.Errorf("%d descriptors; up to %d are possible", v, maxRing), nil
	default:
		q.num = uint16(v)
	}
	return nil, nil
}

func (d *device) setAddr(m *message) (failed, err error) {
	q, err := d.queue(m, 40)
	if err != nil {
		return nil, err
	}
	if q.running != nil {
		return errors.New("the queue runs"), nil
	}
	u := func(at int) uint64 { return binary.LittleEndian.Uint64(m.body[at:]) }
	q.desc, q.used, q.avail, q.addressed = u(8), u(16), u(24), true
	return d.start(q), nil
}

func (d *device) setFD(m *message) (failed, err error) {
	q, err := d.queue(m, 8)
	if err != nil {
		return nil, err
	}
	none := binary.LittleEndian.Uint64(m.body)&noFD != 0
	if none != (len(m.fds) == 0) || len(m.fds) > 1 {
		return nil, fmt.Errorf("%d descriptors", len(m.fds))
	}
	fd := -1
	if !none {
		fd = m.takeFD()
	}
	switch m.request {
	case reqSetVringCall:
		q.setCall(fd)
		return nil, nil
	case reqSetVringErr:
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		return nil, nil
	}
	q.halt()
	q.setKick(fd)
	if none {
		return errors.New("a queue without a kick cannot be served"), nil
	}
	// Without the protocol's features a queue is enabled from the start.
	if d.features&featureProtocol == 0 {
		q.enabled = true
	}
	return d.start(q), nil
}

// getBase stops a queue and tells where it stopped.
func (d *device) getBase(m *message) error {
	q, err := d.queue(m, 8)
	if err != nil {
		return err
	}
	q.halt()
	q.setKick(-1)
	b := binary.LittleEndian.AppendUint32(nil, uint32(q.index))
	return d.reply(m, binary.LittleEndian.AppendUint32(b, uint32(q.next)))
}
